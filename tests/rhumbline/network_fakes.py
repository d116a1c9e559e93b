"""Reward networks with random weights, of two layers each: a decoder over bytes, an encoder over letters."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rhumbline.rewards.network import Network, NetworkSpec
from tests.rhumbline.rewards_fakes import tiny_backbone

PAD, UNK, CLS, SEP, MASK = range(5)


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's own scheme, a token per letter: [CLS] a [SEP] b [SEP]."""
    letters = [chr(c) for c in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:5]])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=256,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def tiny_encoder(folder: Path, seed: int = 0) -> Path:
    tokenizer = letter_tokenizer()
    settings = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    BertForMaskedLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tied(folder: Path, seed: int = 0) -> Path:
    """`tiny_backbone` whose output embeddings are its input embeddings."""
    settings = LlamaConfig.from_pretrained(tiny_backbone(folder))
    settings.tie_word_embeddings = True
    torch.manual_seed(seed)
    LlamaForCausalLM(settings).save_pretrained(folder)
    return folder


def tiny_base(folder: Path, encoder: bool = False) -> Path:
    return tiny_encoder(folder) if encoder else tiny_backbone(folder)


def started(folder: Path, spec: NetworkSpec, seed: int = 0, **options: bool) -> Network:
    """In evaluation mode, its head far from zero, so that outputs differ."""
    torch.manual_seed(seed)
    network = Network.start(folder, spec, **options).eval()
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.normal_(0, 0.3)
    return network
