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

QWEN2_5 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first)
        or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{ '\n' + message.content }}{% endif %}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{% set call = call.function %}{% endif %}
            {{- '\n<tool_call>\n{"name": "' }}{{ call.name }}{{ '", "arguments": ' }}
            {{- call.arguments | tojson }}{{ '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3_1 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system_message = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}
{{- system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{ '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + message.content + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}{%- set role = 'model' -%}
    {%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""

PHI4 = """{% for message in messages %}{% if message['role'] == 'system' %}
{{- '<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>' }}{% elif message['role'] == 'user' %}
{{- '<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>' }}{% elif message['role'] == 'assistant' %}
{{- '<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""

PHI4_MINI = """{% for message in messages %}
{%- if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}
{%- else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""

COMMAND_R = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{%- set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}
{%- set system_message = false %}{% endif %}
{%- if system_message != false %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}
{%- for message in loop_messages %}{% set content = message['content'] %}
{%- if message['role'] == 'user' %}
{{- '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- elif message['role'] == 'assistant' %}
{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

OLMO2 = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}
{{- '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}
{{- '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}
{{- '<|assistant|>\n' + message['content'] + eos_token + '\n' }}{% else %}
{{- '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}{% endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"""

GRANITE = """{%- for message in messages %}
{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
{%- if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
{%- endfor %}"""

SMOLLM3 = """{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- set mode = '/think' if enable_thinking else '/no_think' %}
{%- if messages[0].role == 'system' %}{% set instructions = messages[0].content.replace('/no_think', '').rstrip() %}
{%- else %}{% set instructions = 'You are helpful.' %}{% endif %}
{{- '<|im_start|>system\nToday Date: ' ~ strftime_now('%d %B %Y') ~ '\nReasoning Mode: ' + mode + '\n' }}
{{- instructions + '<|im_end|>\n' }}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' %}{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- if mode == '/think' %}{{ '<|im_start|>assistant\n' + content.lstrip('\n') + '<|im_end|>\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + '<think>\n\n</think>\n' + content.lstrip('\n') + '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {%- if mode == '/think' %}{{ '<|im_start|>assistant\n' }}
    {%- else %}{{ '<|im_start|>assistant\n' + '<think>\n\n</think>\n' }}{% endif %}
{%- endif %}"""

MISTRAL_TEKKEN = """{{- bos_token }}{% for message in messages %}
{%- if message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}
{%- elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
{%- elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}
{%- else %}{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"""

DEEPSEEK_V2 = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}
{%- elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}
{%- elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

DEEPSEEK_V3_1 = """{{ bos_token }}{% set ns = namespace(is_last_user=false) %}{% for message in messages %}
{%- if message['role'] == 'user' %}{% set ns.is_last_user = true %}{{ '<|User|>' + message['content'] }}
{%- elif message['role'] == 'assistant' %}
{%- if ns.is_last_user %}{{ '<|Assistant|></think>' }}{% endif %}{% set ns.is_last_user = false %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>', 1)[1] %}{% endif %}
{{- content + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt and ns.is_last_user %}{{ '<|Assistant|>' }}
{%- if not thinking %}{{ '</think>' }}{% else %}{{ '<think>' }}{% endif %}{% endif %}"""

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
    "qwen2.5": Template(QWEN2_5, IM_END, ("Yo<|im_end|>", "No.<|im_end|>")),
    "llama 3.1": Template(LLAMA3_1, ("<|eot_id|>",), ("Yo<|eot_id|>", "No.<|eot_id|>")),
    "gemma 3": Template(GEMMA3, ("<eos>", "<end_of_turn>"), ("Yo<end_of_turn>", "No.<end_of_turn>")),
    "phi 4": Template(PHI4, IM_END, ("Yo<|im_end|>", "No.<|im_end|>")),
    "phi 4 mini": Template(PHI4_MINI, ("</s>", "<|end|>"), ("Yo<|end|>", "No.<|end|></s>")),
    "command r": Template(
        COMMAND_R, ("<|END_OF_TURN_TOKEN|>",), ("Yo<|END_OF_TURN_TOKEN|>", "No.<|END_OF_TURN_TOKEN|>")
    ),
    "olmo 2": Template(OLMO2, targets=("Yo</s>", "No.</s>")),
    "granite": Template(GRANITE, ("<|end_of_text|>",), ("Yo<|end_of_text|>", "No.<|end_of_text|>")),
    "smollm3": Template(SMOLLM3, IM_END, ("Yo<|im_end|>", "No.<|im_end|>")),
    "mistral tekken": Template(MISTRAL_TEKKEN, targets=("Yo</s>", "No.</s>")),
    "deepseek v2": Template(DEEPSEEK_V2, targets=(" Yo</s>", " No.</s>")),
    "deepseek v3.1": Template(DEEPSEEK_V3_1, targets=("Yo</s>", "No.</s>")),
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
    "a macro that writes all": Template(
        "{% macro say(ms) %}{% for m in ms %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}{% endmacro %}{{ say(messages) }}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        IM_END,
        BOTH,
    ),
    "a recursive loop": Template(
        "{% for message in messages recursive %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        IM_END,
        BOTH,
    ),
    "a namespace that carries the role": Template(
        "{% set ns = namespace(role='', text='') %}"
        + chatml(
            "{% set ns.role = message.role %}{% set ns.text = message.content %}"
            "{{ '<|im_start|>' + ns.role + '\n' + ns.text + '<|im_end|>\n' }}"
        ),
        IM_END,
        BOTH,
    ),
    "a namespace that keeps the text before": Template(
        "{% set ns = namespace(before='') %}"
        + chatml(
            "{% if message.role == 'assistant' %}" + HEAD + "{{ ns.before }}" + TAIL + "{% endif %}"
            "{% set ns.before = message.content %}"
        ),
        IM_END,
        refused="message not rendered",
    ),
    "two messages joined": Template(
        chatml(HEAD + "{{ messages[loop.index0 - 1].content ~ message.content }}" + TAIL),
        IM_END,
        refused="turn in several pieces",
    ),
    "all contents joined by a filter": Template(
        "{{ messages | map(attribute='content') | join('<|im_end|>\n') }}<|im_end|>\n"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        IM_END,
        refused="prompt not in the text",
    ),
    "words counted out and in": Template(
        chatml(HEAD + "{{ message.content.split() | join(' ') }}" + TAIL), IM_END, BOTH
    ),
    "content letter by letter": Template(
        chatml(HEAD + "{% for letter in message.content %}{{ letter }}{% endfor %}" + TAIL), IM_END, BOTH
    ),
    "a slice and its rest": Template(
        chatml(HEAD + "{{ message.content[:1] }}{{ message.content[1:] }}" + TAIL), IM_END, BOTH
    ),
    "a range backwards": Template(
        chatml(
            "{% set message = messages[i] %}" + HEAD + "{{ message.content }}" + TAIL,
            "for i in range(messages|length - 1, -1, -1)",
        ),
        IM_END,
        refused="messages out of order",
    ),
    "formatted from a dictionary": Template(
        chatml("{{ '<|im_start|>%(role)s\n%(content)s<|im_end|>\n' % message }}"),
        IM_END,
        refused="special token in a message",
    ),
    "text behind the end": Template(
        chatml(HEAD + "{{ message.content }}<|im_end|>over\n"), IM_END, refused="no end token"
    ),
    "an end for the last alone": Template(
        chatml(HEAD + "{{ message.content }}{% if loop.last %}<|im_end|>{% endif %}\n"), IM_END, refused="no end token"
    ),
}
