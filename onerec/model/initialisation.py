"""How a new model's weights start."""

from torch import nn

from onerec.model.moe import Experts, Router

EMBEDDING_STD = 0.02


def initialise(module: nn.Module) -> None:
    """Normal weights of variance 1 / fan-in; unit norms.

    Embeddings start small: what a rare item keeps of its random start is noise.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=EMBEDDING_STD)
    elif isinstance(module, nn.RMSNorm):
        nn.init.ones_(module.weight)
    elif isinstance(module, Router):
        nn.init.normal_(module.weight_ED, std=module.weight_ED.size(1) ** -0.5)
    elif isinstance(module, Experts):
        nn.init.normal_(module.inner_EDF, std=module.inner_EDF.size(1) ** -0.5)
        nn.init.normal_(module.output_EFD, std=module.output_EFD.size(1) ** -0.5)
