"""What foreign chains do with our packets, by rules as libnftables lists them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.network.passing import ACCEPT, DROP, REJECT, Packet, inbound, outbound, verdict

BRIDGE = "rc-0123456789ab"


def match(key: str, right: object, op: str = "==", kind: str = "meta") -> dict[str, Any]:
    return {"match": {"op": op, "left": {kind: {"key": key}}, "right": right}}


def rule(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"expr": [{"counter": {"packets": 1, "bytes": 2}}, *statements]}


YES: dict[str, Any] = {"accept": None}
NO: dict[str, Any] = {"drop": None}


@pytest.mark.parametrize(
    ("rules", "into", "out"),
    [
        pytest.param([], DROP, DROP, id="policy"),
        pytest.param([rule(YES)], ACCEPT, ACCEPT, id="everything"),
        pytest.param([rule(match("oifname", "rc-*"), YES)], ACCEPT, DROP, id="wildcard"),
        pytest.param([rule(match("iifname", BRIDGE), YES)], DROP, ACCEPT, id="by-name"),
        pytest.param([rule(match("iifname", "rc-ffffffffffff"), YES)], DROP, DROP, id="another-bridge"),
        pytest.param([rule(match("iifname", "docker0", "!="), YES)], ACCEPT, ACCEPT, id="not-docker"),
        pytest.param([rule(match("iifname", "eth0", "!="), YES)], DROP, ACCEPT, id="perhaps-the-way-out"),
        pytest.param([rule(match("iifname", "eth0"), YES)], DROP, DROP, id="perhaps-from-outside"),
        pytest.param([rule(match("iifname", {"set": ["lo", "rc-*"]}), YES)], DROP, ACCEPT, id="set"),
        pytest.param([rule(match("state", "established", "in", "ct"), YES)], DROP, DROP, id="established"),
        pytest.param(
            [rule(match("state", {"set": ["established", "new"]}, "==", "ct"), YES)], ACCEPT, ACCEPT, id="new"
        ),
        pytest.param([rule(match("status", "dnat", "in", "ct"), YES)], ACCEPT, DROP, id="dnat"),
        pytest.param([rule(match("mark", 5), YES)], DROP, DROP, id="who-knows"),
        pytest.param([rule({"limit": {"rate": 3}}, YES)], DROP, DROP, id="limit"),
        pytest.param([rule({"xt": None}, YES)], DROP, DROP, id="iptables-extension"),
        pytest.param([rule({"log": {"prefix": "x"}}, YES)], ACCEPT, ACCEPT, id="log"),
        pytest.param([rule(match("mark", 5), NO), rule(YES)], ACCEPT, ACCEPT, id="drops-some"),
        pytest.param([rule({"reject": {"type": "icmpx"}}), rule(YES)], REJECT, REJECT, id="reject"),
        pytest.param([rule({"jump": {"target": "ours"}}), rule(YES)], ACCEPT, ACCEPT, id="jump-and-back"),
        pytest.param([rule({"goto": {"target": "none"}}), rule(YES)], DROP, DROP, id="goto-ends-in-policy"),
        pytest.param([rule({"jump": {"target": "back"}}), rule(YES)], ACCEPT, ACCEPT, id="return"),
        pytest.param(
            [
                rule(
                    {
                        "vmap": {
                            "key": {"meta": {"key": "iifname"}},
                            "data": {"set": [["rc-*", {"goto": {"target": "ours"}}], ["eth0", NO]]},
                        }
                    }
                )
            ],
            DROP,
            ACCEPT,
            id="verdict-map",
        ),
    ],
)
def test_the_first_rule_that_can_be_told_decides(rules: list[dict[str, Any]], into: str, out: str) -> None:
    chains = {
        "base": rules,
        "ours": [rule(match("iifname", "rc-*"), YES)],
        "none": [],
        "back": [rule({"return": None}), rule(NO)],
    }
    assert verdict(chains, "base", DROP, inbound(BRIDGE)) == into
    assert verdict(chains, "base", DROP, outbound(BRIDGE)) == out


def test_chains_that_lead_to_each_other_end() -> None:
    chains = {"a": [rule({"jump": {"target": "b"}})], "b": [rule({"jump": {"target": "a"}})]}
    assert verdict(chains, "a", ACCEPT, outbound(BRIDGE)) == ACCEPT


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["rc-*", "jump", "base", "iifname", "dnat"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["match", "vmap", "jump", "goto", "accept", "left", "right", "op", "meta", "ct", "key", "set"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.fixed_dictionaries({"expr": _JSON}), max_size=4), st.booleans())
def test_rules_of_any_form_give_a_verdict(rules: list[dict[str, Any]], dnat: bool) -> None:
    found = verdict({"base": rules}, "base", DROP, Packet(BRIDGE, "", dnat))
    assert found in (ACCEPT, DROP, REJECT)
