"""Settings of the tokenizer: which vectors, how they are fused, quantised, kept unique and judged."""

import math
from typing import Literal

from pydantic import Field, model_validator

from tokenizer.settings import Settings

MAX_CODE_SPACE = 2**62  # semantic IDs are packed into one int64 key
_CELLS_PER_ITEM = 7  # of the first two levels at most, where the catalogue's size decides
_LEAST_AUTO_EXPONENT, _LARGEST_AUTO_EXPONENT = 4, 13  # 16 to 8192 codes a level; the report has 8192


class TextSettings(Settings):
    """Text of an item -> vector. The template moves results, so it is a setting."""

    weight: float = Field(
        default=0.3, ge=0, description="share of squared length in the fused vector; 0 turns text off"
    )
    columns: Literal["auto"] | list[str] = Field(
        default="auto", description="columns in the order they are written; auto = the text columns of the data schema"
    )
    field_template: str = Field(
        default="{name}: {value}", description="one column's text; {name} and {value} are replaced"
    )
    separator: str = Field(default="\n", description="between two columns")
    encoder: str = Field(
        default="minilm", description="`minilm` (packaged, offline) or the folder of a local checkpoint"
    )
    max_length_tokens: int = Field(
        default=256, ge=1, description="text beyond this is cut by the encoder's own tokenizer"
    )
    batch_size: int = Field(default=64, ge=1, description="strings a batch")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …")
    cache_folder: str = Field(default=".cache/vectors", description="encoded texts by content hash; empty = no cache")
    max_share_without_text: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="more items without any text than this is an error; fewer get the mean vector",
    )

    @model_validator(mode="after")
    def _template_holds_value(self) -> "TextSettings":
        if "{value}" not in self.field_template:
            raise ValueError("field_template needs {value}, for example '{name}: {value}'")
        return self


class CollaborativeSettings(Settings):
    """Items bought or watched together -> vector, from training events only."""

    weight: float = Field(default=0.7, ge=0, description="share of squared length in the fused vector; 0 turns it off")
    width: int = Field(
        default=96, ge=1, description="numbers a vector; cut to the number of items with events, and said so"
    )
    window_events: int = Field(
        default=10, ge=1, description="pairs at most this many events apart in a history co-occur"
    )
    decay: bool = Field(default=True, description="a pair d events apart counts 1/d (as in GloVe) instead of 1")
    smoothing: float = Field(
        default=0.75, gt=0, le=1, description="power of the context's frequency (Levy et al. 2015, section 3.2)"
    )
    shift: float = Field(default=1.0, ge=1, description="PMI is lowered by log(shift) (Levy & Goldberg 2014)")
    singular_power: float = Field(
        default=0.75, ge=0, le=1, description="singular values are raised to this power (Levy et al. 2015, section 3.3)"
    )
    iterations: int = Field(default=7, ge=0, description="power iterations of the randomised SVD")


class GivenSettings(Settings):
    """Ready vectors: a list column of the items table or a .npy file with one row an item."""

    weight: float = Field(default=0.0, ge=0, description="share of squared length in the fused vector; 0 turns it off")
    source: str = Field(
        default="", description="a column's name, or the path of a .npy file (float, num_items x width)"
    )
    width: int | None = Field(default=None, ge=1, description="expected width; None accepts any")

    @model_validator(mode="after")
    def _has_source(self) -> "GivenSettings":
        if self.weight > 0 and not self.source:
            raise ValueError("given.source is empty; name a column or a .npy file, or set given.weight to 0")
        return self


class ImageSettings(Settings):
    """Images of items as further tokens of the behaviour-aware vectors."""

    encoder: str = Field(
        default="", description="folder of a local vision checkpoint that transformers' AutoModel loads; empty = none"
    )
    column: str = Field(
        default="", description="items column of image files (paths) or of their bytes; null = no image"
    )
    max_tokens: int = Field(
        default=50, ge=1, description="an image's patch vectors are averaged in their order down to so many"
    )
    batch_size: int = Field(default=32, ge=1, description="images a batch")

    @model_validator(mode="after")
    def _both_or_neither(self) -> "ImageSettings":
        if bool(self.encoder) != bool(self.column):
            raise ValueError("images need both the folder of an encoder and the name of a column; found one of them")
        return self


class SwingSettings(Settings):
    """Swing similarity of items, which gives the item-to-item pairs (Yang et al. 2020, arXiv 2010.05525)."""

    alpha: float = Field(default=1.0, ge=0, description="added to the number of items that two users share")
    user_power: float = Field(
        default=0.5, ge=0, description="a user of n items weighs n^-user_power; 0.5 is the published 1/sqrt(n)"
    )
    max_users_per_item: int = Field(
        default=1000, ge=2, description="an item with more users counts so many of them, drawn by the seed, and says so"
    )
    neighbours: int = Field(default=5, ge=0, description="an item is paired with so many most similar ones; 0 = none")


class FrontTrainingSettings(Settings):
    """Training of the QFormer by pairs and captions."""

    steps: int = Field(default=1000, ge=1, description="optimizer steps")
    batch_size: int = Field(default=256, ge=2, description="pairs a step; each other pair is a negative")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak; after the warm-up it falls linearly to 0")
    warmup_steps: int = Field(default=50, ge=0)
    temperature: float = Field(default=0.07, gt=0, description="cosines are divided by it")
    caption_weight: float = Field(default=1.0, ge=0, description="weight of the caption loss; 0 = no captions")
    caption_items: int = Field(default=64, ge=1, description="items a step whose text is predicted from their vectors")
    caption_words: int = Field(default=32, ge=1, description="first text tokens of an item that are predicted")
    caption_layers: int = Field(default=1, ge=1, description="layers of the text decoder")
    save_steps: int = Field(default=100, ge=1, description="a stopped training goes on from the last multiple of it")


class BehaviourSettings(Settings):
    """Token vectors of text and images -> QFormer -> vector, trained on behaviour (OneRec report, arXiv 2506.13695)."""

    weight: float = Field(default=0.0, ge=0, description="share of squared length in the fused vector; 0 turns it off")
    max_text_tokens: int = Field(
        default=64, ge=1, description="text tokens an item, of tokenizer.text's columns and encoder; more are cut"
    )
    recent_items: int = Field(
        default=10, ge=1, description="an event is paired with the closest of so many that the user met before it"
    )
    num_queries: int = Field(default=4, ge=1, description="vectors an item is read into; the report's number")
    num_layers: int = Field(default=4, ge=1, description="QFormer layers; the report's number")
    width: int = Field(default=128, ge=1, description="width of each of these vectors (the report's is 512)")
    num_heads: int = Field(default=4, ge=1, description="attention heads")
    images: ImageSettings = ImageSettings()
    swing: SwingSettings = SwingSettings()
    training: FrontTrainingSettings = FrontTrainingSettings()

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "BehaviourSettings":
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
        return self


class FusionSettings(Settings):
    """How the vectors of several sources become one."""

    centre: bool = Field(default=True, description="subtract each source's mean first")
    whiten_power: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="0 leaves a source's covariance, 1 whitens it fully, between them a partial step",
    )
    ridge: float = Field(
        default=1.0,
        gt=0,
        description="penalty of the map that predicts missing collaborative vectors from the other sources",
    )


class RqVaeSettings(Settings):
    """RQ-VAE; the numbers are those of TIGER (Rajput et al. 2023, section 4.1) where it gives them."""

    latent_width: int = Field(default=32, ge=1, description="width of what is quantised")
    hidden_widths: list[int] = Field(
        default=[512, 256, 128], description="layers of the encoder; the decoder mirrors them"
    )
    epochs: int = Field(default=200, ge=1, description="passes over the items")
    batch_size: int = Field(default=1024, ge=1, description="items a step")
    learning_rate: float = Field(default=1e-3, gt=0)
    commitment: float = Field(default=0.25, ge=0, description="weight of the commitment loss (beta)")
    restart_every_steps: int = Field(
        default=100, ge=1, description="codes unused since the last check restart at a residual"
    )


class QuantizerSettings(Settings):
    """Vectors -> codes."""

    kind: Literal["rq_kmeans", "balanced", "rq_vae"] = Field(
        default="rq_kmeans", description="OneRec report's RQ-KMeans, OneRec v1's balanced k-means, or TIGER's RQ-VAE"
    )
    codes_per_level: list[int] | Literal["auto"] = Field(
        default=[256, 256, 256], description="K of every level; auto: three levels, as large as the catalogue fills"
    )
    iterations: int = Field(default=25, ge=1, description="Lloyd iterations a level (k-means kinds)")
    evening_fills: int = Field(
        default=2,
        ge=0,
        description="rq_kmeans: balanced fills after the first iterations, which spread items evenly over the codes",
    )
    train_rows_per_code: int = Field(
        default=256, ge=1, description="k-means trains on at most this many rows a code, drawn by the seed"
    )
    chunk_rows: int = Field(default=65_536, ge=1, description="rows held at once while streaming")
    rq_vae: RqVaeSettings = RqVaeSettings()

    @model_validator(mode="after")
    def _levels_fit(self) -> "QuantizerSettings":
        if isinstance(self.codes_per_level, str):
            return self
        if not self.codes_per_level or min(self.codes_per_level) < 2:
            raise ValueError("codes_per_level needs at least one level, and every level at least 2 codes")
        if math.prod(self.codes_per_level) > MAX_CODE_SPACE:
            raise ValueError(f"the product of codes_per_level must not exceed {MAX_CODE_SPACE}")
        return self

    def sizes(self, num_items: int) -> list[int]:
        """K of every level for a catalogue of so many items.

        `auto` takes the largest power of two with which the first two levels have at most seven cells an item: with
        more, hardly any two items share a prefix, and the third level has nothing left to tell apart.
        """
        if not isinstance(self.codes_per_level, str):
            return self.codes_per_level
        exponent = math.floor(math.log2(_CELLS_PER_ITEM * num_items) / 2)
        return [2 ** min(max(exponent, _LEAST_AUTO_EXPONENT), _LARGEST_AUTO_EXPONENT)] * 3


class CollisionSettings(Settings):
    """What happens to items with equal codes."""

    policy: Literal["suffix", "reassign", "bucket"] = Field(
        default="suffix",
        description="one more level (TIGER's digit), the nearest free code, or shared codes with a rank",
    )
    suffix_codes: int = Field(
        default=0,
        ge=0,
        description="size of the suffix level; 0 = twice the largest bucket, which leaves room for new items",
    )


class PieceSettings(Settings):
    """SentencePiece over semantic IDs, an embedding vocabulary for the context; the default is none."""

    vocabulary_size: int = Field(
        default=0, ge=0, description="pieces at most, more than the codes of all levels together; 0 = no pieces"
    )
    model: Literal["unigram", "bpe"] = Field(
        default="unigram", description="how pieces are chosen: by likelihood (the paper's), or by merging the frequent"
    )


class ReportSettings(Settings):
    """Thresholds that make `fit` fail. Shares are of what is possible: of min(K, num_items) codes a level."""

    min_level_use: float = Field(default=0.25, ge=0, le=1, description="used codes / possible codes, at every level")
    min_perplexity_share: float = Field(
        default=0.1, ge=0, le=1, description="perplexity / possible codes, at every level"
    )
    max_bucket_share: float = Field(
        default=0.25, gt=0, le=1, description="largest bucket before collisions are handled / items"
    )
    max_collision_share: float = Field(
        default=1.0, ge=0, le=1, description="items sharing their codes before handling / items"
    )
    min_neighbour_agreement: float = Field(
        default=0.0, ge=0, le=1, description="nearest neighbours sharing the first code"
    )
    num_neighbours: int = Field(default=10, ge=1, description="nearest neighbours compared")
    neighbour_sample_items: int = Field(default=2000, ge=1, description="items whose neighbours are looked up")


class TokenizerSettings(Settings):
    """The `tokenizer:` section of a run's config."""

    seed: int = 0
    text: TextSettings = TextSettings()
    collaborative: CollaborativeSettings = CollaborativeSettings()
    given: GivenSettings = GivenSettings()
    behaviour: BehaviourSettings = BehaviourSettings()
    fusion: FusionSettings = FusionSettings()
    quantizer: QuantizerSettings = QuantizerSettings()
    collisions: CollisionSettings = CollisionSettings()
    pieces: PieceSettings = PieceSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def _some_vectors(self) -> "TokenizerSettings":
        if self.text.weight + self.collaborative.weight + self.given.weight + self.behaviour.weight <= 0:
            raise ValueError(
                "every source of vectors has weight 0; give text, collaborative, given or behaviour a weight"
            )
        return self
