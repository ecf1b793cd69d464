"""What `infer` draws if it is no folder of shards: the pictures of a folder, of a table of pairs, or one picture."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dist_sketch.core.errors import UserError
from dist_sketch.data.layouts import SPLITS, Folders, NoLayout, own_folders
from dist_sketch.data.listing import has_pictures, printable
from dist_sketch.data.names import encode_key
from dist_sketch.data.recipe import FilePair, Problem, Recipe, folder_recipe, pairs, table_recipe, unusable
from dist_sketch.data.tables import is_table


def inputs(path: Path, split: str) -> list[FilePair | Problem]:
    """Lists the image files that `infer` draws, in natural order of names; at the end those that cannot be used.

    Args:
        path: one image file, or a folder or a table as `input_recipe` takes it.
        split: the split of the folder.

    Raises:
        UserError: nothing that can be used is there, or the split is missing.
    """
    if path.is_file() and not is_table(path):
        if printable(path.name) != path.name:
            raise UserError(f"{printable(str(path))}: its name is not valid UTF-8: rename it")
        return [FilePair(encode_key(path.stem), path.stem, split, path, None)]
    found, problems = pairs(recipe := input_recipe(path, split))
    own = [pair for pair in found if pair.split == split]
    if not own and problems:
        raise unusable(path, problems)
    if not own:
        raise _no_split(recipe, split, {pair.split for pair in found})
    return [*own, *problems]


def input_recipe(path: Path, split: str) -> Recipe:
    """The recipe of a folder or table that `infer` draws.

    Args:
        path: a folder of images (lines without sketches), or in one of the layouts of `data.layouts`, or a table of
            pairs (of both, `split` is taken, with sketches if there are any).

    Raises:
        UserError: nothing is there, or the split is missing.
    """
    if is_table(path):
        return table_recipe(path)
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder or image")
    recipe = Recipe(name="folder", root=path, splits=own_folders(path, need_train_sketches=False))
    if not recipe.splits and not has_pictures(path):
        with suppress(NoLayout):
            recipe = folder_recipe(path)
    if not recipe.splits:
        return Recipe(name="folder", root=path, splits={split: Folders(line=".")})
    if any(folders.table for folders in recipe.splits.values()):
        return recipe  # its rows say which split they are
    if split not in recipe.splits:
        raise _no_split(recipe, split, recipe.splits)
    return replace(recipe, splits={split: recipe.splits[split]})


def _no_split(recipe: Recipe, split: str, there: Collection[str]) -> UserError:
    names = ", ".join(name for name in SPLITS if name in there)
    return UserError(f"{recipe.root}: has no split {split}; it has {names} (choose with --split)")
