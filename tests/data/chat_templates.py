"""Chat templates: kinds that published models use, and hostile ones that no model should."""

from __future__ import annotations

from dataclasses import dataclass

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@dataclass(frozen=True)
class Template:
    source: str
    end_tokens: tuple[str, ...] = ("</s>",)
    targets: tuple[str, ...] = ()
    """What is trained of the conversation `CONVERSATION`."""
    refused: str = ""
    """Or why it is refused."""


CONVERSATION = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "No."},
]

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

QWEN3 = r"""{%- set ns = namespace(last=0) %}
{%- for message in messages[::-1] %}
    {%- set index = messages|length - 1 - loop.index0 %}
    {%- if message.role == 'user' and not ns.last %}{% set ns.last = index %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role != 'assistant' %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- else %}
        {%- set reasoning = message.reasoning_content or '' %}
        {%- if not reasoning and '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

LLAMA2 = """{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set system = false %}{% set rest = messages %}{% endif %}
{%- for message in rest %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if loop.index0 == 0 and system %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message.content %}
{%- else %}{% set content = message.content %}{% endif %}
{%- if message.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

MISTRAL = """{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set rest = messages %}{% endif %}
{%- set last = (rest | selectattr('role', 'equalto', 'user') | list)[-1] %}
{{- bos_token }}
{%- for message in rest %}
{%- if message.role == 'user' %}
{%- if system is defined and message == last %}{{ '[INST] ' + system + '\n\n' + message.content + '[/INST]' }}
{%- else %}{{ '[INST] ' + message.content + '[/INST]' }}{% endif %}
{%- else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}
{%- endfor %}"""

DEEPSEEK_R1 = """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}{{ '<|User|>' + message.content }}
{%- else %}{{ '<|Assistant|>' + message.content.split('</think>')[-1] + eos_token }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"""

LLAMA3 = """{% for message in messages %}
{%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
    + message['content'] | trim + '<|eot_id|>' %}
{%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

GEMMA = """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message.role %}{% endif %}
{{- '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

PHI3 = """{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

VICUNA = """{% for message in messages %}{% if message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}
{%- else %}{{ 'ASSISTANT: ' + message.content + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

DEEPSEEK_CODER = """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}{{ '### Instruction:\n' + message.content + '\n' }}
{%- else %}{{ '### Response:\n' + message.content + '\n<|EOT|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '### Response:' }}{% endif %}"""

IM_END = ("<|im_end|>",)
PUBLISHED = {
    "chatml": Template(CHATML, IM_END, ("Yo<|im_end|>", "No.<|im_end|>")),
    "qwen3": Template(QWEN3, IM_END, ("Yo<|im_end|>", "<think>\n\n</think>\n\nNo.<|im_end|>")),
    "llama 2": Template(LLAMA2, targets=(" Yo </s>", " No. </s>")),
    "mistral": Template(MISTRAL, targets=(" Yo</s>", " No.</s>")),
    "deepseek r1": Template(DEEPSEEK_R1, refused="prompt not in the text"),
    "llama 3": Template(LLAMA3, ("<|eot_id|>",), ("Yo<|eot_id|>", "No.<|eot_id|>")),
    "gemma": Template(GEMMA, ("<eos>", "<end_of_turn>"), ("Yo<end_of_turn>", "No.<end_of_turn>")),
    "phi 3": Template(PHI3, ("</s>", "<|end|>"), ("Yo<|end|>", "No.<|end|>\n</s>")),
    "phi 3, half of its ends": Template(PHI3, ("<|end|>",), refused="no end token"),
    "vicuna": Template(VICUNA, targets=(" Yo</s>", " No.</s>")),
    "zephyr": Template(ZEPHYR, targets=("Yo</s>", "No.</s>")),
    "deepseek coder": Template(DEEPSEEK_CODER, ("<|EOT|>",), ("\nYo\n<|EOT|>", "\nNo.\n<|EOT|>")),
    "gemma without its end": Template(GEMMA, ("<eos>",), refused="no end token"),
}


def chatml(turn: str, loop: str = "for message in messages", end: str = "") -> str:
    """A ChatML template with another way to write a turn, to loop, or to end."""
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    return "{% " + loop + " %}" + turn + "{% endfor %}" + end + prompt


HEAD, TAIL = "{{ '<|im_start|>' + message.role + '\n' }}", "{{ '<|im_end|>\n' }}"
BOTH = ("Yo<|im_end|>", "No.<|im_end|>")
HOSTILE = {
    "a macro": Template(
        "{% macro say(m) %}{{ m.content }}<|im_end|>\n{% endmacro %}" + chatml(HEAD + "{{ say(message) }}"),
        IM_END,
        BOTH,
    ),
    "a call block": Template(
        "{% macro wrapped() %}{{ caller() }}<|im_end|>\n{% endmacro %}"
        + chatml(HEAD + "{% call wrapped() %}{{ message.content }}{% endcall %}"),
        IM_END,
        BOTH,
    ),
    "a set block": Template(
        chatml(HEAD + "{% set text %}{{ message.content }}<|im_end|>{% endset %}{{ text + '\n' }}"), IM_END, BOTH
    ),
    "a set block before": Template(
        "{% set tail %}<|im_end|>\n{% endset %}" + chatml(HEAD + "{{ message.content }}{{ tail }}"), IM_END, BOTH
    ),
    "a filter block": Template(
        chatml(HEAD + "{% filter trim %} {{ message.content }} {% endfilter %}" + TAIL), IM_END, BOTH
    ),
    "percent": Template(chatml(HEAD + "{{ '%s' % message.content }}" + TAIL), IM_END, BOTH),
    "percent with a tuple": Template(chatml(HEAD + "{{ '%s%s' % (message.content, '') }}" + TAIL), IM_END, BOTH),
    "the filter format": Template(chatml(HEAD + "{{ '%s'|format(message.content) }}" + TAIL), IM_END, BOTH),
    "str.format": Template(chatml(HEAD + "{{ '{}{}'.format(message.content, '') }}" + TAIL), IM_END, BOTH),
    "str.join": Template(chatml(HEAD + "{{ ''.join([message.content, '<|im_end|>\n']) }}"), IM_END, BOTH),
    "the filter join": Template(chatml(HEAD + "{{ [message.content, '<|im_end|>']|join }}{{ '\n' }}"), IM_END, BOTH),
    "indent": Template(chatml(HEAD + "{{ message.content|indent(2) }}" + TAIL), IM_END, BOTH),
    "tilde": Template(
        chatml("{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}"), IM_END, BOTH
    ),
    "a range": Template(
        chatml(
            "{% set message = messages[i] %}" + HEAD + "{{ message.content }}" + TAIL, "for i in range(messages|length)"
        ),
        IM_END,
        BOTH,
    ),
    "a range without a name": Template(
        chatml(
            "{{ '<|im_start|>' + messages[i].role + '\n' + messages[i].content + '<|im_end|>\n' }}",
            "for i in range(messages|length)",
        ),
        IM_END,
        BOTH,
    ),
    "new dictionaries": Template(
        "{% set ns = namespace(all=[]) %}{% for m in messages %}"
        "{% set ns.all = ns.all + [{'role': m.role, 'content': m.content|trim}] %}{% endfor %}"
        + chatml(HEAD + "{{ message.content }}" + TAIL, "for message in ns.all"),
        IM_END,
        BOTH,
    ),
    "collected, then written": Template(
        "{% set ns = namespace(all='') %}{% for m in messages %}"
        "{% set ns.all = ns.all + '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' %}{% endfor %}{{ "
        "ns.all }}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        IM_END,
        BOTH,
    ),
    "look ahead": Template(
        chatml(
            HEAD
            + "{{ message.content }}{% for other in messages %}{% if other.role == 'nobody' %}x{% endif %}{% endfor %}"
            "{% if loop.nextitem is defined or loop.last %}" + TAIL + "{% endif %}"
        ),
        IM_END,
        BOTH,
    ),
    "content twice in its turn": Template(
        chatml(HEAD + "{{ message.content + '|' + message.content }}" + TAIL),
        IM_END,
        ("Yo|Yo<|im_end|>", "No.|No.<|im_end|>"),
    ),
    "content again at the end": Template(
        chatml(
            HEAD + "{{ message.content }}" + TAIL,
            end="{% if not add_generation_prompt %}{% for m in messages %}{{ m.content }}{% endfor %}{% endif %}",
        ),
        IM_END,
        refused="turn in several pieces",
    ),
    "messages swapped": Template(
        chatml(HEAD + "{{ message.content }}" + TAIL, "for message in messages|reverse"),
        IM_END,
        refused="messages out of order",
    ),
    "answers before their questions": Template(
        chatml(
            "{% for message in pair|reverse %}" + HEAD + "{{ message.content }}" + TAIL + "{% endfor %}",
            "for pair in messages|batch(2)",
        ),
        IM_END,
        refused="messages out of order",
    ),
    "the next message within": Template(
        chatml(HEAD + "{{ message.content }}{% if not loop.last %}{{ loop.nextitem.content }}{% endif %}" + TAIL),
        IM_END,
        refused="turn in several pieces",
    ),
    "the question repeated within": Template(
        chatml(HEAD + "{{ message.content }}{% if not loop.first %}{{ loop.previtem.content }}{% endif %}" + TAIL),
        IM_END,
        refused="turn in several pieces",
    ),
    "all as JSON": Template("{{ messages|tojson }}</s>", refused="messages mixed"),
    "header twice": Template(
        chatml(
            HEAD + "{{ message.content }}" + TAIL + "{% if message.role == 'assistant' %}" + HEAD + TAIL + "{% endif %}"
        ),
        IM_END,
        refused="header in the target",
    ),
    "a header, but no prompt": Template(
        "{% for message in messages %}" + HEAD + "{{ message.content }}" + TAIL + "{% endfor %}",
        IM_END,
        refused="no generation prompt",
    ),
    "another prompt": Template(
        "{% for message in messages %}"
        + HEAD
        + "{{ message.content }}"
        + TAIL
        + "{% endfor %}{% if add_generation_prompt %}<|im_start|>bot\n{% endif %}",
        IM_END,
        refused="prompt not in the text",
    ),
    "answers left out": Template(
        chatml("{% if message.role == 'user' %}" + HEAD + "{{ message.content }}" + TAIL + "{% endif %}"),
        IM_END,
        refused="message not rendered",
    ),
    "text behind the end": Template(
        chatml(HEAD + "{{ message.content }}<|im_end|>over\n"), IM_END, refused="no end token"
    ),
    "an end for the last alone": Template(
        chatml(HEAD + "{{ message.content }}{% if loop.last %}<|im_end|>{% endif %}\n"), IM_END, refused="no end token"
    ),
}
