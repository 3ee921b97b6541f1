from __future__ import annotations

import pytest
from hydra.errors import InstantiationException

from star.schedule import ScaleSchedule
from star.utils.instantiate import build_all, instantiate, instantiate_trusted, targets


def test_a_constructors_own_error_arrives() -> None:
    with pytest.raises(ValueError, match="positive"):
        instantiate({"_target_": "star.schedule.ScaleSchedule", "sizes": [0]})


def test_nested_objects_and_null_entries() -> None:
    schedule = {"_target_": "star.schedule.ScaleSchedule", "sizes": [1, 2]}
    assert build_all({"a": schedule, "b": None}) == [ScaleSchedule.square(1, 2)]
    assert targets({"x": [schedule], "_target_": "y"}) == ["y", "star.schedule.ScaleSchedule"]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "star.utils.cli.os.system",
        "star.sampling.decoder.torch.load",
        "star.schedule.Sequence",
        "star.models.transformer.torch",
        "star.sampling.samplers.filter_logits",
        "star.data.shards.ShardDataset",
        "starry.models.Thing",
        "star.models.transformer.STARTransformer.forward",
    ],
)
def test_a_checkpoint_may_name_only_classes_of_this_package(target: str) -> None:
    with pytest.raises(ValueError, match="not opened"):
        instantiate_trusted({"inner": [{"_target_": target, "path": "x"}]})


def test_own_classes_and_trusted_packages_are_built() -> None:
    config = {"_target_": "star.schedule.ScaleSchedule", "sizes": [1, [2, 3]]}
    assert instantiate_trusted(config) == ScaleSchedule(((1, 1), (2, 3)))
    fraction = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}
    with pytest.raises(ValueError, match="fractions"):
        instantiate_trusted(fraction)
    assert instantiate_trusted(fraction, packages=["fractions"]) == 0.5


@pytest.mark.parametrize("outer", [False, True])
def test_settings_of_the_wrong_kind_are_named(outer: bool) -> None:
    wrong = {"_target_": "star.training.optim.AdamW", "lr": None, "betas": [0.9, 0.95]}
    with pytest.raises(ValueError, match=r"star\.training\.optim\.AdamW .*lr=null, betas=\[0\.9, 0\.95\].*NoneType"):
        instantiate({"part": {"inner": wrong}} if outer else wrong)


def test_errors_of_other_peoples_classes_keep_their_traceback() -> None:
    with pytest.raises(InstantiationException):
        instantiate({"_target_": "fractions.Fraction", "numerator": "x" * 3, "denominator": [1]})
