import json

from appliance.errors import NotFound
from appliance.gen.v1 import access_pb2
from tests.box import Box, refusal
from tests.cli.answers import Cli

HR = access_pb2.Group(name="groups/hr", users=["ann", "ben"])


def test_a_group_is_set_to_these_users(box: Box, cli: Cli) -> None:
    box.answers["SetGroup"] = lambda request, context: access_pb2.SetGroupResponse(group=request.group)
    assert cli("access", "group", "set", "hr", "ben", "ann").stdout.split() == ["user", "ann", "ben"]
    assert (box.calls[0].request.group.name, list(box.calls[0].request.group.users)) == ("groups/hr", ["ben", "ann"])
    answer = json.loads(cli("access", "group", "set", "hr", "ann", "--json").stdout)
    assert answer == {"name": "hr", "users": ["ann"]}


def test_a_group_of_nobody_is_a_usage_error(box: Box, cli: Cli) -> None:
    assert cli("access", "group", "set", "hr").exit_code == 2
    assert box.calls == []


def test_the_list_counts_users_over_all_pages(box: Box, cli: Cli) -> None:
    box.answers["ListGroups"] = lambda request, context: access_pb2.ListGroupsResponse(
        groups=[access_pb2.Group(name="groups/board")] if request.page_token else [HR],
        next_page_token="" if request.page_token else "more",
    )
    assert [line.split() for line in cli("access", "group", "list").stdout.splitlines()] == [
        ["group", "users"],
        ["hr", "2"],
        ["board", "0"],
    ]
    assert json.loads(cli("access", "group", "list", "--json").stdout) == {
        "groups": [{"name": "hr", "users": ["ann", "ben"]}, {"name": "board", "users": []}]
    }


def test_one_is_shown_or_told_not_to_be_there(box: Box, cli: Cli) -> None:
    box.answers["GetGroup"] = lambda request, context: access_pb2.GetGroupResponse(group=HR)
    assert cli("access", "group", "show", "hr").stdout.split() == ["user", "ann", "ben"]
    assert json.loads(cli("access", "group", "show", "hr", "--json").stdout)["users"] == ["ann", "ben"]
    box.answers["GetGroup"] = refusal(NotFound("There is no group sales."))
    missing = cli("access", "group", "show", "sales")
    assert missing.exit_code == 4
    assert "There is no group sales." in missing.stderr


def test_deleting_asks_first_and_names_the_group(box: Box, cli: Cli) -> None:
    box.answers["DeleteGroup"] = lambda request, context: access_pb2.DeleteGroupResponse()
    assert cli("access", "group", "delete", "hr", input="n\n").exit_code == 130
    assert box.calls == []
    assert "Deleted hr." in cli("access", "group", "delete", "hr", "--yes").stdout
    assert box.calls[0].request.name == "groups/hr"
    assert json.loads(cli("access", "group", "delete", "hr", "--yes", "--json").stdout) == {"deleted": "hr"}
