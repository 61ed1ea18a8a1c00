"""A specification is read strictly, and says where it is wrong."""

import pytest

from yugong.emulator import DEMO_KEY, EmulatorSpec
from yugong.emulator.spec import SpecError


def test_a_whole_one() -> None:
    spec = EmulatorSpec.from_document(
        {
            "orgs": [
                {"name": "a", "keys": ["k1", "k2"], "rpm": 60, "tpm": 1000},
                {
                    "name": "b",
                    "keys": ["k3"],
                    "trouble": "429_quota",
                    "groups": [{"name": "mini", "models": ["*-mini"], "rpm": 3}],
                },
            ],
            "faults": [{"kind": "500", "share": 0.1, "orgs": ["a"]}],
            "pieces": 4,
        }
    )
    assert spec.keys() == {"a": ["k1", "k2"], "b": ["k3"]}
    assert spec.orgs[0].groups[0].limits.tpm == 1000
    assert spec.orgs[1].groups[0].models == ("*-mini",)
    assert spec.faults[0].orgs == ("a",)
    assert repr(spec) == "<EmulatorSpec orgs=2 faults=1 pieces=4>"
    assert "k1" not in repr(spec.orgs[0])


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ([], "spec: an object"),
        ({"piece": 1}, "unknown piece"),
        ({"orgs": {}}, "orgs: a list"),
        ({"orgs": [{"name": "a"}]}, "orgs[0]: name and keys"),
        ({"orgs": [{"name": "a", "keys": [], "rpm": 0}]}, "orgs[0].rpm"),
        ({"orgs": [{"name": "a", "keys": [], "rpm": True}]}, "orgs[0].rpm"),
        ({"orgs": [{"name": "a", "keys": [], "rpm": 1, "groups": []}]}, "either on the org"),
        ({"orgs": [{"name": "a", "keys": [], "groups": [{"modles": []}]}]}, "orgs[0].groups[0]: unknown modles"),
        ({"faults": [{"share": 1}]}, "faults[0]: kind"),
    ],
)
def test_what_is_wrong_is_said(document: object, where: str) -> None:
    with pytest.raises(SpecError) as told:
        EmulatorSpec.from_document(document)
    assert where in str(told.value)


def test_the_demo_has_the_well_known_key() -> None:
    assert EmulatorSpec.demo().keys() == {"demo": [DEMO_KEY]}
