"""The tokenizer of all models: a byte-level BPE trained on the corpus, saved as an ordinary fast tokenizer.

Base and aligned model share all ids. The tokenizer adds the begin token to plain text, as Llama's does, so the template
of the base does not contain it. The chat template writes the begin token itself, as chat templates do; its text must
be encoded without special tokens. In both cases a prompt begins with one begin token. Both prompts end in a newline,
so the first token of a completion has the same id after either.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from eddecode.experiments import corpus

VOCABULARY = 768
PAD, BEGIN, END, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"
CONTEXT_WINDOW = 512
CORPUS_DOCUMENTS = 6000

# A newline is a token of its own; a word includes the space before it.
_SPLIT = Regex(r"\n| ?[A-Za-z]+| ?[^A-Za-z\s]+|\s")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant, not ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def _texts(seed: int) -> Iterator[str]:
    for document in islice(corpus.documents(seed), CORPUS_DOCUMENTS):
        yield document.text + document.reply


def train_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer on documents drawn with this seed. Deterministic; without a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_SPLIT, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BEGIN, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        model_max_length=CONTEXT_WINDOW,
        clean_up_tokenization_spaces=False,
    )


def with_chat_template(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Set the chat template of the aligned model (in place) and return the tokenizer."""
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
