"""jaxlm: every sequence model of the textbook, under one contract.

The public face: train with `jaxlm.train(experiment, workdir)`, use the result with `jaxlm.load(workdir)`, and build
experiments from the names below. A name is imported at its first use, so that `import jaxlm` waits for no library.
"""

# ruff: noqa: I001 (the imports are grouped by subject)
import ast
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    # Train, load, evaluate
    from jaxlm.cli.training.train import run_this_experiment as run_this_experiment
    from jaxlm.errors import UserError as UserError
    from jaxlm.experiment import Experiment as Experiment, load_experiment as load_experiment
    from jaxlm.pipeline.pipeline import Pipeline as Pipeline, load as load
    from jaxlm.runtime import configure_process as configure_process
    from jaxlm.scaling.grid import Grid as Grid, GridRun as GridRun
    from jaxlm.training.loop import train as train
    from jaxlm.training.run_options import RunOptions as RunOptions

    # Tasks and objectives
    from jaxlm.objectives.labels import Regression as Regression, SequenceClassification as SequenceClassification
    from jaxlm.objectives.labels import TokenClassification as TokenClassification
    from jaxlm.objectives.masked_lm import MaskedLM as MaskedLM
    from jaxlm.objectives.next_token import NextToken as NextToken
    from jaxlm.objectives.policy_gradient import PolicyGradient as PolicyGradient
    from jaxlm.objectives.preference import KTO as KTO, PairwisePreference as PairwisePreference
    from jaxlm.objectives.reward_model import BradleyTerry as BradleyTerry
    from jaxlm.tasks.classification import Classification as Classification
    from jaxlm.tasks.instruction_tuning import InstructionTuning as InstructionTuning
    from jaxlm.tasks.language_modeling import LanguageModeling as LanguageModeling
    from jaxlm.tasks.masked_lm import MaskedLanguageModeling as MaskedLanguageModeling
    from jaxlm.tasks.parsing import Parsing as Parsing, TreeTagging as TreeTagging
    from jaxlm.tasks.preferences import Preferences as Preferences
    from jaxlm.tasks.prompting import Prompted as Prompted
    from jaxlm.tasks.regression import TextRegression as TextRegression
    from jaxlm.tasks.rewards import Rewards as Rewards
    from jaxlm.tasks.span_corruption import T5_SENTINELS as T5_SENTINELS, Denoising as Denoising
    from jaxlm.tasks.tagging import Tagging as Tagging
    from jaxlm.tasks.translation import Translation as Translation
    from jaxlm.training.judges import AnswerJudge as AnswerJudge, Arithmetic as Arithmetic, ExactMatch as ExactMatch
    from jaxlm.training.judges import JsonValid as JsonValid, LengthPenalty as LengthPenalty, RegexMatch as RegexMatch
    from jaxlm.training.judges import RewardModelScore as RewardModelScore, WeightedSum as WeightedSum

    # Models and their parts
    from jaxlm.models.bag_of_words import BagOfWords as BagOfWords
    from jaxlm.models.convolutional import ConvLM as ConvLM, ConvSeq2Seq as ConvSeq2Seq
    from jaxlm.models.decoder import Decoder as Decoder
    from jaxlm.models.encoder import Encoder as Encoder
    from jaxlm.models.encoder_decoder import EncoderDecoder as EncoderDecoder
    from jaxlm.models.ensemble import Ensemble as Ensemble
    from jaxlm.models.feedforward_lm import FeedForwardLM as FeedForwardLM
    from jaxlm.models.finetune_heads import TextClassifier as TextClassifier, TokenClassifier as TokenClassifier
    from jaxlm.models.ngram import NGram as NGram
    from jaxlm.models.prefix_lm import PrefixLM as PrefixLM
    from jaxlm.models.reward_model import ActorCritic as ActorCritic, RewardModel as RewardModel
    from jaxlm.models.rnn_classifier import RecurrentClassifier as RecurrentClassifier
    from jaxlm.models.rnn_classifier import RecurrentTagger as RecurrentTagger
    from jaxlm.models.rnn_lm import RecurrentLM as RecurrentLM
    from jaxlm.models.rnn_seq2seq import Seq2Seq as Seq2Seq
    from jaxlm.ngram.smoothing import KneserNey as KneserNey, WittenBell as WittenBell
    from jaxlm.nn.layers.positions import Llama3Scaling as Llama3Scaling, Rotary as Rotary
    from jaxlm.nn.layers.word_embedding import CharacterCNN as CharacterCNN
    from jaxlm.nn.rnn.cells import LSTM as LSTM, Elman as Elman, GRU as GRU
    from jaxlm.nn.rnn.layers import Recurrent as Recurrent

    # Optimizers and fine-tuning
    from jaxlm.finetuning import FineTuning as FineTuning, LoRA as LoRA
    from jaxlm.optim import AdamW as AdamW, Constant as Constant, CosineDecay as CosineDecay
    from jaxlm.optim import InverseSqrt as InverseSqrt, LinearDecay as LinearDecay, SGD as SGD, StepDecay as StepDecay

    # Data: sources, tokenizers, batching
    from jaxlm.data.batching.bucketing import Buckets as Buckets
    from jaxlm.data.batching.lm_windows import Windows as Windows
    from jaxlm.data.batching.bucketing import Packing as Packing
    from jaxlm.data.batching.sequence_format import SequenceFormat as SequenceFormat
    from jaxlm.data.chat.dialogue import Dialogue as Dialogue, Judged as Judged, Preference as Preference, Turn as Turn
    from jaxlm.data.chat.instructions import AlpacaFile as AlpacaFile, MessagesFile as MessagesFile
    from jaxlm.data.chat.instructions import PairDialogues as PairDialogues, QuestionFile as QuestionFile
    from jaxlm.data.chat.instructions import SelfInstructFile as SelfInstructFile, ShareGptFile as ShareGptFile
    from jaxlm.data.chat.jinja_template import JinjaChatTemplate as JinjaChatTemplate
    from jaxlm.data.chat.template import ALPACA as ALPACA, CHATML as CHATML, GEMMA as GEMMA, LLAMA2 as LLAMA2
    from jaxlm.data.chat.template import LLAMA3 as LLAMA3, PLAIN as PLAIN, ChatTemplate as ChatTemplate
    from jaxlm.data.chat.preferences import JudgedFile as JudgedFile, PairPreferences as PairPreferences
    from jaxlm.data.chat.preferences import PreferenceFile as PreferenceFile
    from jaxlm.data.minilang.commands import MiniLangCommands as MiniLangCommands, MiniLangTexts as MiniLangTexts
    from jaxlm.data.minilang.corpus import MiniLang as MiniLang, analyze as analyze
    from jaxlm.data.minilang.sources import MiniLangMinimalPairs as MiniLangMinimalPairs
    from jaxlm.data.minilang.sources import MiniLangSentiment as MiniLangSentiment
    from jaxlm.data.minilang.sources import MiniLangTags as MiniLangTags, MiniLangTrees as MiniLangTrees
    from jaxlm.data.pretraining.masked_lm import MaskedLMRows as MaskedLMRows
    from jaxlm.data.pretraining.span_corruption import PrefixLMWindows as PrefixLMWindows
    from jaxlm.data.pretraining.span_corruption import SpanCorruption as SpanCorruption
    from jaxlm.data.files import ReadStats as ReadStats
    from jaxlm.data.sources.arrow import ArrowTable as ArrowTable
    from jaxlm.data.sources.base import PairSource as PairSource, Source as Source
    from jaxlm.data.sources.classification import SENTIMENT_LABELS as SENTIMENT_LABELS, LabeledLines as LabeledLines
    from jaxlm.data.sources.classification import MapLabels as MapLabels, RteXml as RteXml
    from jaxlm.data.sources.conll import UPOS_TAGS as UPOS_TAGS, ColumnFile as ColumnFile, ConllU as ConllU
    from jaxlm.data.sources.conll import RepairTags as RepairTags
    from jaxlm.data.sources.parallel import Csv as Csv, JsonLines as JsonLines
    from jaxlm.data.sources.parallel import ParallelFiles as ParallelFiles, Tsv as Tsv
    from jaxlm.corpora.contamination import Decontaminate as Decontaminate
    from jaxlm.corpora.corpus import (
        Corpus as Corpus,
        CorpusSource as CorpusSource,
        Licenses as Licenses,
        Terms as Terms,
    )
    from jaxlm.corpora.duplicates import Duplicates as Duplicates
    from jaxlm.corpora.filters import C4 as C4, FineWeb as FineWeb, GopherQuality as GopherQuality
    from jaxlm.corpora.filters import GopherRepetition as GopherRepetition, Language as Language
    from jaxlm.corpora.opt_out import OptOut as OptOut
    from jaxlm.corpora.personal import Personal as Personal
    from jaxlm.data.sources.mixed import Mixed as Mixed, Temperature as Temperature, UniMax as UniMax
    from jaxlm.data.sources.text import Documents as Documents, TextFile as TextFile
    from jaxlm.data.sources.tfds import Tfds as Tfds
    from jaxlm.data.sources.transforms import Concat as Concat, HashSplit as HashSplit, RelabelTags as RelabelTags
    from jaxlm.data.sources.transforms import SplitName as SplitName
    from jaxlm.data.sources.text import Shards as Shards
    from jaxlm.data.tokenizers.loading import SavedTokenizer as SavedTokenizer
    from jaxlm.data.tokenizers.sentencepiece import SentencePiece as SentencePiece
    from jaxlm.data.tokenizers.simple import Bytes as Bytes, Characters as Characters, Words as Words
    from jaxlm.data.tokenizers.simple import WordsWithChars as WordsWithChars
    from jaxlm.metrics.classification import iob2_tags as iob2_tags
    from jaxlm.data.tokenizers.tree_tokens import TreeTokens as TreeTokens
    from jaxlm.trees.linearize import Brackets as Brackets, level_labels as level_labels
    from jaxlm.trees.reader import Trees as Trees, parse_tree as parse_tree

    # Decoding
    from jaxlm.decode.beam_config import Beam as Beam
    from jaxlm.decode.beam_search import beam_search as beam_search
    from jaxlm.decode.generate import generate as generate
    from jaxlm.decode.sampling import Sampler as Sampler
    from jaxlm.grammar.constraint import choices as choices, copy_from_source as copy_from_source
    from jaxlm.grammar.constraint import json_schema as json_schema, regex as regex
    from jaxlm.inference.base import TrainedModel as TrainedModel
    from jaxlm.inference.generate import GenerationDefaults as GenerationDefaults
    from jaxlm.inference.generate import GenerationRequest as GenerationRequest
    from jaxlm.inference.translate import Search as Search

    # Metrics
    from jaxlm.metrics.brackets import score_trees as score_trees
    from jaxlm.metrics.text import bleu as bleu, chrf as chrf, perplexity as perplexity
else:

    def _module_of_names() -> dict[str, str]:
        """Name -> module, read from the imports above: one list serves type checkers and the running program."""
        tree = ast.parse(__spec__.loader.get_source(__name__))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        return {name.name: node.module for node in imports for name in node.names if node.module.startswith("jaxlm.")}

    _MODULES = _module_of_names()
    __all__ = sorted(_MODULES)

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value  # the next use does not come here
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})
