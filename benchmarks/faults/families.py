"""Experiments of seconds, one of each family of models, that are killed, stopped and starved on purpose.

`python -m jaxlm train benchmarks.faults.families:tagger`. The texts of the language models are the file that
`write_texts` makes, looked for as every file is (`$JAXLM_DATA`).
"""

from pathlib import Path

from jaxlm import (
    LSTM,
    AdamW,
    Beam,
    Buckets,
    Bytes,
    Constant,
    Decoder,
    Encoder,
    EncoderDecoder,
    Experiment,
    GenerationDefaults,
    InstructionTuning,
    LanguageModeling,
    LengthPenalty,
    MaskedLanguageModeling,
    MaskedLM,
    MaskedLMRows,
    MiniLang,
    MiniLangCommands,
    MiniLangTags,
    Packing,
    PairDialogues,
    PairPreferences,
    PairwisePreference,
    PolicyGradient,
    Preferences,
    Recurrent,
    RecurrentTagger,
    Rewards,
    Search,
    SentencePiece,
    Seq2Seq,
    Tagging,
    TextFile,
    TokenClassification,
    Translation,
    Tsv,
    Windows,
    Words,
    WordsWithChars,
)

FAMILIES = (
    "translation", "recurrent", "language_model", "tagger", "masked_lm", "instructions", "preferences", "rewards"
)  # fmt: skip
TEXTS, PAIRS, MASK = "faults.txt", "faults.tsv", "[MASK]"
SEARCH = Search(Beam(1), max_len_ratio=0.2, max_len_extra=2, batch_tokens=512, max_source_len=24)
SPLITS = MiniLang("train", 64), MiniLang("valid", 4), MiniLang("test", 4)
OPTIMIZER = AdamW(Constant(1e-2), weight_decay=0.01, clip=1.0)
RUN = {"steps": 12, "log_every": 2, "evaluate_every": 4, "checkpoint_every": 4, "optimizer": OPTIMIZER}


def write_texts(folder: Path, count: int = 200) -> Path:
    """Make the files of the language models in a folder: a sentence a line, returned, and pairs of answers."""
    file, sentences = folder / TEXTS, [english for english, _ in MiniLang("train", count)]
    file.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
    pairs = zip(sentences, sentences[1:], sentences[2:], strict=False)
    (folder / PAIRS).write_text("".join("\t".join(pair) + "\n" for pair in pairs), encoding="utf-8")
    return file


def translation() -> Experiment:
    """A Transformer encoder-decoder on subwords, with a mean of its parameters."""
    model = EncoderDecoder(120, 16, 2, 32, 1, 1, dropout=0.1)
    tokenizer = SentencePiece(120, byte_fallback=False)
    task = Translation(*SPLITS, search=SEARCH, valid_examples=2)
    batching = Buckets(tokens=512, max_shapes=1, max_length=64)
    return Experiment(task, model, tokenizer, batching, ema_decay=0.9, average_last=2, **RUN)


def recurrent() -> Experiment:
    """An LSTM encoder-decoder with attention, on words."""
    model = Seq2Seq(100, 16, Recurrent(LSTM(16)), Recurrent(LSTM(16)), dropout=0.1)
    batching = Buckets(tokens=256, max_shapes=1, max_length=40)
    return Experiment(Translation(*SPLITS, search=SEARCH, valid_examples=2), model, Words(100), batching, **RUN)


def language_model() -> Experiment:
    """A decoder on windows of bytes, two micro-batches an update."""
    texts, windows = TextFile(TEXTS), Windows(24, 8, carry_state=False)
    task = LanguageModeling(texts, texts, texts, windows=windows, sample_tokens=4)
    model = Decoder(260, 16, 2, 32, 1, max_length=96, dropout=0.1)
    return Experiment(task, model, Bytes(), windows, best_metric="valid/nll", grad_accum=2, **RUN)


def tagger() -> Experiment:
    """A bidirectional LSTM with a conditional random field, on words and their characters."""
    labels = ("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "NOUN", "NUM", "PRON", "PROPN", "VERB")
    task = Tagging(*(MiniLangTags(split, count) for split, count in (("train", 64), ("valid", 4), ("test", 4))),
                   labels=labels)  # fmt: skip
    network = Recurrent(LSTM(16), bidirectional=True)
    model = RecurrentTagger(100, len(labels), network, word_width=16, dropout=0.1, crf=True)
    parts = WordsWithChars(100, 40), Buckets(tokens=256, max_shapes=1, max_length=40)
    return Experiment(task, model, *parts, objective=TokenClassification(), best_metric="valid/accuracy", **RUN)


def masked_lm() -> Experiment:
    """A small BERT."""
    texts, rows = TextFile(TEXTS), MaskedLMRows(length=24, rows=8)
    task = MaskedLanguageModeling(texts, texts, texts, eval_batching=rows, mask_token=MASK, valid_batches=2)
    tokenizer = SentencePiece(100, byte_fallback=False, user_defined_symbols=(MASK,))
    model = Encoder(100, 16, 2, 32, 1, max_length=32)
    return Experiment(task, model, tokenizer, rows, objective=MaskedLM(), best_metric="valid/nll", **RUN)


def instructions() -> Experiment:
    """Supervised fine-tuning of a decoder on packed dialogues."""
    splits = (MiniLangCommands(split, count) for split, count in (("train", 64), ("valid", 4), ("test", 4)))
    task = InstructionTuning(*splits, generation=GenerationDefaults(max_tokens=4))
    parts = Decoder(260, 16, 2, 32, 1, max_length=256, dropout=0.1), Bytes(), Packing(256, tokens=2048)
    return Experiment(task, *parts, best_metric="valid/nll", **RUN)


def preferences() -> Experiment:
    """DPO of a decoder, with a stored reference."""
    pairs = PairPreferences(Tsv(PAIRS, (0, 1), 2))
    task = Preferences(pairs, pairs, pairs, generation=GenerationDefaults(max_tokens=4))
    parts = Decoder(260, 16, 2, 32, 1, max_length=256), Bytes(), Buckets(tokens=2048, max_shapes=1, max_length=256)
    return Experiment(task, *parts, objective=PairwisePreference(), best_metric="valid/loss", **RUN)


def rewards() -> Experiment:
    """RLOO of a decoder that samples before each step, with a live reference."""
    dialogues = PairDialogues(Tsv(PAIRS, 0, 1))
    task = Rewards(dialogues, dialogues, dialogues, judge=LengthPenalty(1, 8))
    parts = Decoder(260, 16, 2, 32, 1, max_length=256), Bytes(), Buckets(tokens=1024, max_shapes=1, max_length=256)
    return Experiment(
        task, *parts, objective=PolicyGradient(num_samples=2, max_tokens=4), best_metric="valid/reward", **RUN
    )
