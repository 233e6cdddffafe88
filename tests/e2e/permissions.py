"""What roles are granted by the deployed template, and what they used of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from infra.local.stack import EMULATOR_POLICY, LocalStack

# The emulator asks for the call's own name where AWS asks for that of what it does (service
# authorization reference of DynamoDB and SQS).
_NAMES_ON_AWS = {
    "dynamodb:BatchExecuteStatement": "dynamodb:PartiQLInsert",
    "sqs:SendMessageBatch": "sqs:SendMessage",
    "sqs:ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
}


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """One action of a role on one resource; names as in the template, no account, no region."""

    role: str
    action: str
    resource: str

    def covers(self, used: Permission) -> bool:
        """Whether a use was of this grant; what the emulator knows no resource of is of any."""
        return (
            self.role == used.role
            and self.action == used.action
            and (used.resource == "*" or fnmatchcase(used.resource, self.resource))
        )


def read_grants(stack: LocalStack) -> frozenset[Permission]:
    """Every action that a role of the deployed stack has, on each of its resources."""
    iam, names = stack.client("iam"), _Names(stack)
    found = set()
    for role in names.roles:
        for policy in iam.list_role_policies(RoleName=stack.resources[role])["PolicyNames"]:
            if policy == EMULATOR_POLICY:
                continue
            told = iam.get_role_policy(RoleName=stack.resources[role], PolicyName=policy)
            for statement in told["PolicyDocument"]["Statement"]:
                found |= {
                    Permission(role, action, names.shorten(resource))
                    for action in _as_list(statement["Action"])
                    for resource in _as_list(statement["Resource"])
                }
    return frozenset(found)


def read_uses(stack: LocalStack) -> frozenset[Permission]:
    """What was asked for so far, and allowed, by the stack's own roles."""
    names = _Names(stack)
    found = set()
    for line in stack.permissions_file.read_text().splitlines():
        principal, action, resource = line.split("\t")
        if role := names.roles_by_name.get(principal.split("/")[1]):
            action = _NAMES_ON_AWS.get(action, action)
            found.add(Permission(role, action, names.shorten(resource)))
    return frozenset(found)


def write_table(
    grants: Iterable[Permission], used: frozenset[Permission], reasons: Mapping[Permission, str]
) -> str:
    """A line per grant: the role, the action, the resource, and `used` or why it was not."""
    rows = [("role", "action", "resource", "used, or why not")]
    for grant in sorted(grants):
        was_used = any(map(grant.covers, used))
        why = "used" if was_used else reasons.get(grant, "NOT USED")
        rows.append((grant.role, grant.action, grant.resource, why))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "".join(
        "  ".join([*(row[column].ljust(widths[column]) for column in range(3)), row[3]]) + "\n"
        for row in rows
    )


class _Names:
    """Names of the template for what is called otherwise here."""

    def __init__(self, stack: LocalStack) -> None:
        self.roles = sorted(name for name in stack.resources if name.endswith("Role"))
        self.roles_by_name = {stack.resources[role]: role for role in self.roles}
        physical = {
            # A queue is known by its address, of which its ARN has the end.
            identifier.rpartition("/")[2] if "://" in identifier else identifier: logical
            for logical, identifier in stack.resources.items()
        }
        # Longest first, since one name may begin another.
        self._physical = sorted(physical.items(), key=lambda each: -len(each[0]))

    def shorten(self, arn: str) -> str:
        for identifier, logical in self._physical:
            if identifier in arn:
                arn = arn.replace(identifier, logical)
                break
        if not arn.startswith("arn:"):
            return arn
        # arn:partition:service:region:account:resource
        return arn.split(":", 5)[5]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
