"""What is trained of a conversation, with any chat template: proven, else refused; and what it weighs."""
