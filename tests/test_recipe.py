from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from coin_export.errors import RecipeError
from coin_export.recipe import BuildOptions, load_recipe, parse_recipe


def minimal() -> dict[str, Any]:
    return {
        "name": "group",
        "models": [
            {"name": "a", "factory": "package.module:make", "checkpoint": "a.safetensors"},
            {"name": "b", "factory": "package.module:make", "checkpoint": "b.safetensors"},
        ],
        "calibration": {"source": "calibration.npz"},
    }


def with_value(path: str, value: object) -> dict[str, Any]:
    content: Any = minimal()
    *parents, last = path.split(".")
    place = content
    for part in parents:
        place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
    place[int(last) if last.isdigit() else last] = value
    return content  # type: ignore[no-any-return]  # plain data read back from YAML has no narrower type


def written(folder: Path, content: object) -> Path:
    for name in ("a.safetensors", "b.safetensors", "calibration.npz"):
        (folder / name).touch()
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_minimal_recipe_has_sensible_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, minimal()))
    assert recipe.code.code(["a", "b"]).parities == ((0.5, 0.5),)
    assert recipe.code.space == "logits"
    assert recipe.encoder == BuildOptions().encoder


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, with_value("target", "out")))
    assert recipe.models[0].checkpoint == tmp_path / "a.safetensors"
    assert recipe.calibration.source == str(tmp_path / "calibration.npz")
    assert recipe.target == tmp_path / "out"
    absolute = with_value("calibration.source", str(tmp_path / "calibration.npz"))
    assert load_recipe(written(tmp_path, absolute)).calibration.source == str(tmp_path / "calibration.npz")


def test_an_import_path_is_no_file(tmp_path: Path) -> None:
    content = with_value("calibration.source", "package.module:loader")
    assert load_recipe(written(tmp_path, content)).calibration.source == "package.module:loader"


def test_a_model_can_be_protected_more_than_others() -> None:
    recipe = parse_recipe(with_value("code.protect", {"b": 3}), "here")
    np.testing.assert_allclose(recipe.code.code(["a", "b"]).parities, [[0.25, 0.75]])


def test_a_recipe_survives_the_way_through_plain_data() -> None:
    recipe = parse_recipe(with_value("code.coefficients", [[1, 3]]), "here")
    assert parse_recipe(recipe.model_dump(mode="json"), "here") == recipe
    np.testing.assert_allclose(recipe.code.code(["a", "b"]).parities, [[0.25, 0.75]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_value("colour", "red"), "colour: unknown key"),
        (with_value("models.1.color", "red"), r"models\.1\.color: unknown key"),
        (with_value("export.opsett", 20), r"export\.opsett: unknown key"),
        (with_value("repository.max_batch", 8), r"repository\.max_batch: unknown key"),
        (with_value("encoder", {"name": "coin", "damp": 1}), r"encoder\.coin\.damp: unknown key"),
        (with_value("encoder", {"name": "magic"}), "encoder: .*'magic'"),
        (with_value("encoder", {"name": "coin", "damping": -1}), r"encoder\.coin\.damping.*greater than or equal to 0"),
        (with_value("models", []), "models: .*at least 2"),
        (with_value("models.0.factory", "package.module"), r"models\.0\.factory: write it as package\.module:name"),
        (with_value("target", 5), "target: must be a path"),
        (with_value("models.0.name", "../a"), r"models\.0\.name: "),
        (with_value("models.0.name", "b"), "not all different"),
        (with_value("models.0.arguments", 3), r"models\.0\.arguments: .*dictionary"),
        (with_value("calibration", {}), r"calibration\.source: Field required"),
        (with_value("calibration.points", 1), r"calibration\.points: "),
        (with_value("held_out", 1.5), "held_out: "),
        (with_value("seed", "many"), "seed: .*integer"),
        (with_value("code.parities", 0), r"code\.parities: "),
        (with_value("code", {"parities": 1, "coefficients": [[1, 1]]}), "code: .*not both"),
        (
            with_value("code.coefficients", [[1, 1, 1]]),
            "row 0 of the coefficients has 3 entries; there are 2 originals",
        ),
        (with_value("code.coefficients", [[1, 0]]), "coefficient 1 is 0"),
        (with_value("code.coefficients", [[1, 1], [2, 2]]), "do not survive every loss of 2 of the 4 models"),
        (with_value("code.coefficients", [[1, -1]]), "coefficient 1 is -1"),
        (with_value("code.protect", {"c": 2}), "protect: 'c' is none of the models"),
        (with_value("code.protect", {"a": 0}), r"code\.protect\.a: "),
        (with_value("code", {"coefficients": [[1, 1]], "protect": {"a": 2}}), "code: 'protect' chooses coefficients"),
        (with_value("code.coefficients", [["x", 1]]), r"code\.coefficients\.0\.0: .*number"),
        (with_value("code.space", "hyperspace"), r"code\.space: "),
        (with_value("evaluation", {"c": {"source": "c.npz"}}), "'c' is none of the models"),
    ],
)
def test_every_fault_is_named_by_its_key(content: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(content, "recipe.yaml")
    assert str(caught.value).startswith("recipe.yaml: ") and "\n" not in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    content = with_value("colour", "red") | {"seed": -1}
    with pytest.raises(RecipeError, match=r"seed: .*; colour: unknown key|colour: unknown key.*; seed: "):
        parse_recipe(content, "here")


def test_missing_files_are_named_by_their_keys(tmp_path: Path) -> None:
    path = written(tmp_path, with_value("evaluation", {"a": {"source": "test.npz"}}))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"models\.1\.checkpoint: no such file.*evaluation\.a\.source: no such file"):
        load_recipe(path)


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- a", "holds list"), ("", "NoneType")])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
