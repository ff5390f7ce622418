"""Makes the text encoder of the embedded demo: a tiny BERT with random weights, whose vocabulary is the demo's words.

    python -m demo_models.make_text_encoder --output demo_models/text

Frozen and never trained, it gives each word a vector of its own, which is all that the demo's sentences need.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from cmkd.corpora.spoken_demo import vocabulary

SEED = 0
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_TEXT = 128  # tokens

CARD = """\
---
license: apache-2.0
library_name: transformers
language: en
tags: [random-weights]
---

# The text encoder of CMKD's demo

**Random weights, never trained.** A BERT of {parameters:,} parameters ({layers} layers of {hidden}) that tells words
apart and knows nothing about them. Frozen in the teacher of `make demo`, it gives each word of the demo's {words}-word
vocabulary a vector of its own; what the words mean, the teacher learns. It is of no use for anything else.

Other English text is spelled in letters, digits and punctuation. Made by `demo_models/make_text_encoder.py` (seed
{seed}), from the grammar in `cmkd/corpora/spoken_demo.py`.
"""


def make_tokenizer() -> BertTokenizerFast:
    """Returns a lower-casing WordPiece tokenizer with the demo's words and, for all others, letters and digits."""
    words = vocabulary()
    characters = string.ascii_lowercase + string.digits
    pieces = [*words, *characters, *("##" + character for character in characters), *string.punctuation, *"‘’“”–—…"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*SPECIAL_TOKENS, *pieces]))}
    return BertTokenizerFast(vocab=vocab, do_lower_case=True, model_max_length=LONGEST_TEXT)


def make_model(vocab_size: int) -> BertModel:
    """Returns the model in fp16, the same whatever was drawn from torch's generator before."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=LONGEST_TEXT,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return BertModel(config).half()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    output = parser.parse_args().output

    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    tokenizer.save_pretrained(output)
    model.save_pretrained(output)
    card = CARD.format(
        parameters=model.num_parameters(),
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        words=len(vocabulary()),
        seed=SEED,
    )
    (output / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
