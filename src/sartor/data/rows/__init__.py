"""What rows are, told from all of them, and each as one shape: a conversation, a prompt and its completion, a text."""
