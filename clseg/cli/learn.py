"""`clseg learn`, `clseg update` and `clseg prune`: a model that grows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.cli.train import Quiet, Resume, RunFolder
from clseg.cli.watch import watched

if TYPE_CHECKING:
    from clseg.training.learn import Learned
    from clseg.training.proof import Proof


def learn(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe; `clseg recipe new learn` prints a commented one.")],
    run: RunFolder = None,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Teach a model new organs: new decoders on its frozen encoder, pruned, listed at once; earlier results stay bit for bit."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.recipe import LearnRecipe, read_recipe
        from clseg.training.learn import learn as learn_decoders

        plan = read_recipe(recipe, LearnRecipe)
        with watched(terminal) as reports:
            learned = learn_decoders(plan, run or Path("runs") / plan.name, resume=resume, reports=reports)
        _tell(terminal, learned)


def update(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe; `clseg recipe new update` prints a commented one.")],
    run: RunFolder = None,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Improve a decoder with new cases of its organs; refused when the old cases lose more than allowed."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.recipe import UpdateRecipe, read_recipe
        from clseg.training.update import HEADER, UpdateRefused
        from clseg.training.update import update as update_decoder

        plan = read_recipe(recipe, UpdateRecipe)
        try:
            with watched(terminal) as reports:
                done = update_decoder(plan, run or Path("runs") / plan.name, resume=resume, reports=reports)
        except UpdateRefused as refused:
            terminal.table("Dice before and after", HEADER, [list(map(str, row)) for row in refused.rows])
            raise
        if done.rows:
            terminal.table("Dice before and after", HEADER, [list(map(str, row)) for row in done.rows])
        if done.proof:
            terminal.result(f"{done.result.asset}\t{done.result.file}")
        _tell_proof(terminal, done.proof)


def prune(
    model: Annotated[str, typer.Argument(help="Model that holds the decoder.")],
    decoder: Annotated[str, typer.Argument(help="Decoder, e.g. lungs.")],
    recipe: Annotated[Path, typer.Option("--recipe", help="TOML recipe; `clseg recipe new prune` prints a commented one.")],
    run: RunFolder = None,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Make a decoder small and fast: lottery-ticket pruning, whole channels first."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.recipe import PruneRecipe, read_recipe
        from clseg.training.reprune import reprune

        plan = read_recipe(recipe, PruneRecipe)
        with watched(terminal) as reports:
            learned = reprune(model, decoder, plan, run or Path("runs") / plan.name, resume=resume, reports=reports)
        _tell(terminal, learned)


def _tell(terminal: Terminal, learned: Learned) -> None:
    """What was made, how good it is, and that nothing else changed."""
    header = ["structure", "dice", "pruning rate", "parameters"]
    rows = [
        [name, f"{dice:.3f}", f"{result.card['pruning_rate']:.3f}", str(result.card["parameters"])]
        for result in learned.results.values()
        for name, dice in result.card["dice_on_the_models_grid"].items()
    ]
    if rows and learned.proof:
        judges = "training" if any(result.card.get("training_cases_scored") for result in learned.results.values()) else "held-out"
        terminal.table(f"Dice on {judges} cases, on the model's grid", header, rows)
    if learned.proof:
        for result in learned.results.values():
            terminal.result(f"{result.asset}\t{result.file}")
    _tell_proof(terminal, learned.proof)


def _tell_proof(terminal: Terminal, proof: Proof | None) -> None:
    if proof is None:
        return
    for name, (before, after) in proof.weights.items():
        terminal.result(f"{name}\tsha256 {before}\t{'unchanged' if before == after else f'now {after}'}")
    terminal.result(proof.sentence)
