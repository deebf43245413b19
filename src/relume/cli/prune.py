"""`relume prune`: a network without its provably dead units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relume.cli.shared import json_option, progress

if TYPE_CHECKING:
    from torch import nn

    from relume.prune import Pruned
    from relume.training import Training


@click.command()
@click.argument("subject", metavar="FILE:NAME")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of training; default: the training's own.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed that the network is trained from.")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Prune the network with these weights (a state_dict), instead of training it.",
)
@click.option("--all-dead", is_flag=True, help="Also remove units that are silent on all samples but not proven dead.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the pruned network: torch.load(PATH, weights_only=False) gives the module back. No state_dict, since "
    "its smaller layers no longer fit the code that made them.",
)
@json_option
def prune(
    subject: str,
    steps: int | None,
    seed: int,
    weights: Path | None,
    all_dead: bool,
    save: Path | None,
    json_path: Path | None,
) -> None:
    """Remove provably dead units from a trained network; say what that changed and saved.

    FILE:NAME is a relume.Training, which is trained first, or a function that returns one, or (model, batches).
    """
    from relume.loading import load_network

    found = load_network(subject)
    from relume.training import Training

    with progress() as (stage, _):
        if isinstance(found, Training):
            pruned = _trained(found, steps, seed, weights, all_dead, stage)
        else:
            from relume.prune import prune as remove

            model, batches = found
            if weights is not None:
                _load_weights(model, weights)
            stage("looking for dead units")
            pruned = remove(model, batches, all_dead=all_dead)
    if save is not None:
        import cloudpickle
        import torch

        save.parent.mkdir(parents=True, exist_ok=True)
        torch.save(pruned.model, save, pickle_module=cloudpickle)  # classes of the user's file by value
    numbers = json.dumps(pruned.to_json(), allow_nan=False)
    if json_path is not None and str(json_path) == "-":
        click.echo(numbers)
    else:
        click.echo(pruned.text(_columns()))
        if json_path is not None:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(numbers, encoding="utf-8")
            click.echo(f"Numbers: {json_path}", err=True)
    if save is not None:
        click.echo(f"Network: {save}", err=True)


def _trained(
    training: Training, steps: int | None, seed: int, weights: Path | None, all_dead: bool, stage: Any
) -> Pruned:
    """Train, or load the weights; prune; score both networks."""
    from relume.errors import TrainingError
    from relume.prune import prune as remove
    from relume.randomness import isolated_rng
    from relume.training import build, fresh, repeatable, score
    from relume.trial.arms import carry_out

    steps = steps or training.steps
    training = repeatable(training, steps)
    if weights is None:
        stage(f"training for {steps} steps")
        trained = carry_out(fresh(training), steps, seed)
        model, optimizer, before = trained.model, trained.optimizer, trained.score
        if before is None:
            raise TrainingError(
                f"the training {trained.failure}: there is nothing to prune.\n"
                f"`relume diagnose` says why; --weights prunes a network that was trained elsewhere."
            )
    else:
        with isolated_rng():
            model, optimizer = build(training, seed)[0], None
        _load_weights(model, weights)
        before = score(training, model)
    stage("looking for dead units")
    with isolated_rng():
        pruned = remove(model, fresh(training).batches, optimizer, all_dead=all_dead)
    return pruned.scored(before, score(training, pruned.model))


def _load_weights(model: nn.Module, path: Path) -> None:
    """Raises RemedyError where the file holds no state_dict, or that of another network."""
    import torch

    from relume.errors import RemedyError

    how = "Save them with torch.save(model.state_dict(), PATH), from a network of the same code."
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        first = str(error).split("\n")[0]
        raise RemedyError(f"{path} cannot be read as weights: {type(error).__name__}: {first}\n{how}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        kind = f"a dict of {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) else type(state).__name__
        raise RemedyError(f"{path} holds no state_dict but {kind}.\n{how}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RemedyError(f"{path} does not fit {type(model).__name__}: {error}\n{how}") from None


def _columns() -> int:
    from rich.console import Console

    return Console().width
