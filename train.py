"""Train OneRec: `python train.py --config configs/demo.yaml`, or the same under torchrun.

Stages (`--stage`): data, tokenizer, pretrain, evaluate, bundle, report; the default runs all of them and keeps what is
finished. `--stage reward` trains a reward model on the feedback of the run's events, `--stage align` tunes the
pre-trained model with rewards, `--stage stream` trains on the log day by day, each evaluated before it is trained on,
`--stage scaling` trains a ladder of sizes and fits a scaling law or, with `scaling.recipe`, trains the run's own recipe
wider and on parts of its data (the sections of these names). Stop it at any moment: the same command goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.memory import keep_freed_memory
from onerec.config import RunConfig
from onerec.errors import DataUnavailableError, OneRecError
from onerec.pipeline import STAGES, Pipeline
from onerec.scaling.settings import ScalingSettings
from onerec.streaming.settings import StreamSettings
from rl.settings import AlignedRunConfig
from tokenizer.settings import load_settings

REWARD, ALIGN, STREAM, SCALING = "reward", "align", "stream", "scaling"


class TrainConfig(AlignedRunConfig):
    """A run's config with the sections of all further stages; the run itself does not depend on them."""

    stream: StreamSettings = StreamSettings()
    scaling: ScalingSettings = ScalingSettings()

    def run_config(self) -> RunConfig:
        """The config without those sections, which is what the run's folder is bound to."""
        return RunConfig.model_validate(self.model_dump(include=set(RunConfig.model_fields)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages asked for and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML of the run, such as configs/demo.yaml")
    parser.add_argument("--stage", choices=("all", *STAGES, REWARD, ALIGN, STREAM, SCALING), default="all")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--fallback", type=Path, help="config to run instead where the data of --config cannot be had")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    try:
        try:
            pipeline = _run(arguments.config, arguments)
        except DataUnavailableError as error:
            if arguments.fallback is None:
                raise
            print(f"{error}\nRunning {arguments.fallback} in its place.", file=sys.stderr)
            pipeline = _run(arguments.fallback, arguments)
    except OneRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is finished is whole. The same command goes on from here.", file=sys.stderr)
        return 130
    if not pipeline.processes.is_main_process:
        return 0
    if arguments.stage in ("all", "report"):
        print(f"\nServe it:  python serve.py --bundle {pipeline.folder / 'bundle'}")
        print(f"Report:    {pipeline.folder / 'report' / 'report.html'}")
    return 0


def _run(config: Path, arguments: argparse.Namespace) -> Pipeline:
    settings = load_settings(TrainConfig, config, arguments.overrides)
    pipeline = Pipeline.open(settings.run_config(), arguments.runs)
    if arguments.stage == REWARD:
        from rl.preference.stage import train_reward  # nobody else needs what it imports

        if pipeline.processes.is_main_process:
            train_reward(pipeline, settings.reward)
    elif arguments.stage == ALIGN:
        from rl.stage import align  # nobody else needs what it imports

        align(pipeline, settings.align)
    elif arguments.stage == STREAM:
        from onerec.streaming.stage import stream  # nobody else needs what it imports

        stream(pipeline, settings.stream)
    elif arguments.stage == SCALING:
        from onerec.scaling.stage import scale  # nobody else needs what it imports

        scale(pipeline, settings.scaling)
    else:
        pipeline.run(arguments.stage)
    return pipeline


if __name__ == "__main__":
    sys.exit(main())
