"""Tiny random classifiers in the formats of the hub and of Detoxify."""

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = [
    "you",
    "are",
    "a",
    "fool",
    "good",
    "morning",
    "the",
    "train",
    "leaves",
    "at",
    "nine",
    "she",
    "painted",
    "fence",
    "green",
    "what",
    "worthless",
    "i",
    "am",
    "tired",
]
JIGSAW = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


def tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def classifier(classes, problem_type, seed=0):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        initializer_range=1.0,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
        problem_type=problem_type,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a classifier with given classes and returns the folder and the model."""

    def save_classifier(classes, problem_type="single_label_classification", seed=0):
        folder, model = tmp_path / "-".join(classes), classifier(classes, problem_type, seed)
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return str(folder), model

    return save_classifier
