"""Rules that hold for every resource of the template and of the templates nested in it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode.cfn_yaml import load as load_template  # type: ignore[import-untyped]

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = ("template.yaml", "infra/storage.yaml", "infra/messaging.yaml", "infra/observability.yaml")
TEMPLATES: Mapping[str, Any] = {name: load_template(str(REPOSITORY / name)) for name in FILES}
MAIN = TEMPLATES["template.yaml"]
OUR_METRICS = "Meterline/${Stage}"

Resource = tuple[str, str, Mapping[str, Any]]


def find_resources(kind: str) -> list[Resource]:
    """All resources of a type as (file, logical id, resource), at least one."""
    found = [
        (file, name, resource)
        for file, template in TEMPLATES.items()
        for name, resource in template["Resources"].items()
        if resource["Type"] == kind
    ]
    assert found, f"no {kind} anywhere: the rule would hold for nothing"
    return found


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def list_statements() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for _file, name, role in find_resources("AWS::IAM::Role"):
        assert "ManagedPolicyArns" not in role["Properties"], f"{name}: policies are written out"
        for policy in role["Properties"]["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                yield name, statement


def list_texts(value: Any) -> Iterator[str]:
    """Every string inside a value, intrinsic functions' arguments included."""
    if isinstance(value, str):
        yield str(value)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from list_texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from list_texts(each)


def list_watched() -> Iterator[tuple[str, str, str, list[tuple[str, Any]]]]:
    """The metric of every alarm as (alarm, namespace, metric, dimensions)."""
    for _file, name, alarm in find_resources("AWS::CloudWatch::Alarm"):
        metric = alarm["Properties"]
        dimensions = [(each["Name"], each["Value"]) for each in metric["Dimensions"]]
        [namespace] = list_texts(metric["Namespace"])
        yield name, namespace, metric["MetricName"], dimensions


def find_functions() -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, each) for _file, name, each in find_resources("AWS::Serverless::Function")]


def test_the_commands_ask_only_for_outputs_that_the_template_has() -> None:
    asked: set[str] = set()
    for path in (REPOSITORY / "infra/cli").glob("*.py"):
        text = path.read_text()
        asked.update(re.findall(r'\.outputs\["(\w+)"\]', text))
        asked.update(f"{name}Table" for name in re.findall(r'\.table\("(\w+)"\)', text))
    assert {"EventsTable", "EmissionsQueueUrl", "LateUsagePolicy"} <= asked
    assert asked <= set(MAIN["Outputs"])


def test_no_policy_grants_every_action_of_a_service() -> None:
    for role, statement in list_statements():
        for action in as_list(statement["Action"]):
            assert "*" not in action, f"{role} may {action}"


def test_no_policy_reaches_beyond_resources_it_names() -> None:
    # An ARN may end in a wildcard only below a resource that is named: a table's streams, the six
    # characters that Secrets Manager puts behind a secret's name.
    below_a_name = re.compile(r"^(\$\{Storage\.Outputs\.\w+Arn\}/stream/\*|arn:.*\$\{\w+\}-\?{6})$")
    for role, statement in list_statements():
        assert statement["Effect"] == "Allow"
        assert "NotResource" not in statement
        assert "NotAction" not in statement
        for resource in as_list(statement["Resource"]):
            for text in list_texts(resource):
                if "*" in text or "?" in text:
                    assert below_a_name.match(text), f"{role} reaches {text}"


def test_no_function_can_write_an_api_key_or_a_price() -> None:
    # Both lie in the accounts table, at `key#…` and `catalog#…`: they are an operator's to write.
    writing = re.compile(r"dynamodb:(\w*(Put|Update|Delete|Write)\w*|PartiQL(?!Select)\w+)")
    checked = 0
    for role, statement in list_statements():
        if "Outputs.AccountsTableArn" not in list_texts(statement["Resource"]):
            continue
        if not any(writing.fullmatch(action) for action in as_list(statement["Action"])):
            continue
        keys = statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
        for name in ("key#0a1b", "catalog#plans"):
            assert not any(fnmatchcase(name, pattern) for pattern in keys), f"{role} writes {name}"
        checked += 1
    assert checked >= 14


def test_every_function_has_a_role_of_its_own() -> None:
    functions = find_functions()
    roles = {str(next(list_texts(each["Properties"]["Role"]))) for _name, each in functions}
    assert len(roles) == len(functions)
    for name, each in functions:
        [role, _attribute] = list_texts(each["Properties"]["Role"])
        assert role == name.replace("Function", "Role")


def test_a_policy_may_write_only_its_own_functions_logs() -> None:
    for role, statement in list_statements():
        if any(action.startswith("logs:") for action in as_list(statement["Action"])):
            [group, _attribute] = list_texts(statement["Resource"])
            assert group == role.replace("Role", "LogGroup")


def test_every_function_writes_to_a_log_group_with_a_retention() -> None:
    groups = {name: each for _file, name, each in find_resources("AWS::Logs::LogGroup")}
    for name, each in find_functions():
        group = each["Properties"]["LoggingConfig"]["LogGroup"]["Ref"]
        assert group == name.replace("Function", "LogGroup")
    for name, group in groups.items():
        assert group["Properties"].get("RetentionInDays"), f"{name} keeps logs for ever"


def test_every_function_runs_on_python_3_13_and_arm64() -> None:
    defaults = MAIN["Globals"]["Function"]
    for _name, function in find_functions():
        properties = {**defaults, **function["Properties"]}
        assert properties["Runtime"] == "python3.13"
        assert properties["Architectures"] == ["arm64"]
        assert properties["Handler"] == "handler.lambda_handler"


def test_every_function_has_its_folder_and_every_folder_its_function() -> None:
    sources = {str(each["Properties"]["CodeUri"]) for _name, each in find_functions()}
    folders = {
        f"functions/{path.parent.name}" for path in REPOSITORY.glob("functions/*/handler.py")
    }
    assert sources == folders
    for name, each in find_functions():
        words = re.findall(r"[A-Z][a-z]*", name.removesuffix("Function"))
        assert str(each["Properties"]["CodeUri"]) == "functions/" + "_".join(words).lower()


def test_every_queue_has_a_dead_letter_queue_or_is_one_and_rings() -> None:
    rung = {
        str(value["Ref"])
        for _alarm, _namespace, metric, [(_name, value)] in list_watched()
        if metric == "ApproximateNumberOfMessagesVisible"
    }
    for _file, name, queue in find_resources("AWS::SQS::Queue"):
        if name.endswith("DeadLetterQueue"):
            assert f"{name}Name" in rung, f"no alarm for {name}"
        else:
            target = queue["Properties"]["RedrivePolicy"]["deadLetterTargetArn"]
            [dead_letters, _attribute] = list_texts(target)
            assert dead_letters == name.replace("Queue", "DeadLetterQueue")


def test_every_alarm_tells_somebody() -> None:
    for _file, name, alarm in find_resources("AWS::CloudWatch::Alarm"):
        assert alarm["Properties"]["AlarmActions"] == [{"Ref": "AlarmTopic"}], name


def test_every_function_has_an_alarm_for_its_errors() -> None:
    watched = {
        str(value["Ref"])
        for _alarm, _namespace, metric, [(_name, value)] in list_watched()
        if metric == "Errors"
    }
    assert watched == {f"{name}Name" for name, _each in find_functions()}


def list_retries() -> Iterator[tuple[str, int]]:
    """Functions that are tried again where they fail, and after how many seconds."""
    queues = TEMPLATES["infra/messaging.yaml"]["Resources"]
    for _file, _name, source in find_resources("AWS::Lambda::EventSourceMapping"):
        _stack, attribute = source["Properties"]["EventSourceArn"]["Fn::GetAtt"]
        queue = queues.get(attribute.removeprefix("Outputs.").removesuffix("Arn"))
        if queue is not None:
            function = source["Properties"]["FunctionName"]["Ref"]
            yield function, queue["Properties"]["VisibilityTimeout"]
    for _file, _name, schedule in find_resources("AWS::Scheduler::Schedule"):
        [function, _attribute] = schedule["Properties"]["Target"]["Arn"]["Fn::GetAtt"]
        rate = re.fullmatch(
            r"rate\((\d+) (minute|hour)s?\)", schedule["Properties"]["ScheduleExpression"]
        )
        assert rate is not None
        again_s = int(rate[1]) * {"minute": 60, "hour": 3600}[rate[2]]
        # Lambda's own second try comes a minute after the first has failed (developer guide,
        # asynchronous invocation).
        yield function, min(again_s, 60 + MAIN["Resources"][function]["Properties"]["Timeout"])


def test_an_alarm_for_errors_sees_two_tries_however_far_apart_they_are() -> None:
    retries = dict(list_retries())
    assert len(retries) >= 8
    for _file, name, alarm in find_resources("AWS::CloudWatch::Alarm"):
        metric = alarm["Properties"]
        function = name.replace("ErrorsAlarm", "Function")
        if metric["MetricName"] == "Errors" and function in retries:
            assert metric["Period"] * metric["EvaluationPeriods"] > retries[function], name
            # One error is not yet worth a person's time: the next try mends it.
            assert metric["Threshold"] + metric.get("DatapointsToAlarm", 1) == 2, name


def test_every_table_is_kept_and_recoverable_outside_the_local_stage() -> None:
    storage = TEMPLATES["infra/storage.yaml"]
    assert storage["Conditions"]["Kept"] == {
        "Fn::Not": [{"Fn::Equals": [{"Ref": "Stage"}, "local"]}]
    }
    assert storage["Conditions"]["Protected"] == {
        "Fn::And": [{"Condition": "Kept"}, {"Fn::Equals": [{"Ref": "ProtectTables"}, "true"]}]
    }
    assert MAIN["Parameters"]["ProtectTables"]["Default"] == "true"
    when_kept = {"Fn::If": ["Kept", True, False]}
    for _file, name, table in find_resources("AWS::DynamoDB::Table"):
        properties = table["Properties"]
        assert table["DeletionPolicy"] == "RetainExceptOnCreate", name
        assert table["UpdateReplacePolicy"] == "Retain", name
        assert properties["DeletionProtectionEnabled"] == {"Fn::If": ["Protected", True, False]}
        assert properties["PointInTimeRecoverySpecification"] == {
            "PointInTimeRecoveryEnabled": when_kept
        }, name
        assert properties["SSESpecification"] == {"SSEEnabled": True}, name
        assert properties["BillingMode"] == "PAY_PER_REQUEST", name
    assert MAIN["Resources"]["Storage"]["DeletionPolicy"] == "RetainExceptOnCreate"


def test_messages_stay_hidden_six_times_as_long_as_their_function_may_run() -> None:
    queues = TEMPLATES["infra/messaging.yaml"]["Resources"]
    checked = 0
    for _file, name, source in find_resources("AWS::Lambda::EventSourceMapping"):
        _stack, attribute = source["Properties"]["EventSourceArn"]["Fn::GetAtt"]
        queue = queues.get(attribute.removeprefix("Outputs.").removesuffix("Arn"))
        if queue is None:
            continue
        function = source["Properties"]["FunctionName"]["Ref"]
        properties = {**MAIN["Globals"]["Function"], **MAIN["Resources"][function]["Properties"]}
        assert queue["Properties"]["VisibilityTimeout"] >= 6 * properties["Timeout"], name
        checked += 1
    assert checked, "no queue is a source: the rule would hold for nothing"


def test_functions_behind_the_api_answer_before_it_gives_up() -> None:
    resources = MAIN["Resources"]
    for _file, name, integration in find_resources("AWS::ApiGatewayV2::Integration"):
        function = integration["Properties"]["IntegrationUri"]["Fn::GetAtt"][0]
        properties = {**MAIN["Globals"]["Function"], **resources[function]["Properties"]}
        assert properties["Timeout"] < 30, name


def test_every_route_may_call_its_function() -> None:
    permitted = {
        (each["Properties"]["FunctionName"]["Ref"], text.partition("/*/")[2])
        for _file, _name, each in find_resources("AWS::Lambda::Permission")
        for text in list_texts(each["Properties"]["SourceArn"])
    }
    resources = MAIN["Resources"]
    for _file, name, route in find_resources("AWS::ApiGatewayV2::Route"):
        target = route["Properties"]["Target"]["Fn::Sub"]
        integration = target.removeprefix("integrations/${").removesuffix("}")
        function = resources[integration]["Properties"]["IntegrationUri"]["Fn::GetAtt"][0]
        assert (function, route["Properties"]["RouteKey"].replace(" ", "")) in permitted, name


def test_no_secret_is_handed_to_a_function_in_the_clear() -> None:
    for _file, name, function in find_resources("AWS::Serverless::Function"):
        for variable in function["Properties"].get("Environment", {}).get("Variables", {}):
            assert not re.search(r"KEY|TOKEN|PASSWORD|SECRET(?!_ID)", variable), (
                f"{name}: {variable}"
            )


def test_no_function_reserves_what_a_new_account_does_not_have() -> None:
    # A new account has 10 concurrent executions, and none of them can be reserved.
    for _file, name, function in find_resources("AWS::Serverless::Function"):
        reserved = function["Properties"].get("ReservedConcurrentExecutions")
        if reserved is not None:
            condition, amount, otherwise = reserved["Fn::If"]
            assert otherwise == {"Ref": "AWS::NoValue"}, name
            assert MAIN["Conditions"][condition] == {"Fn::Not": [{"Fn::Equals": [amount, 0]}]}
            assert MAIN["Parameters"][amount["Ref"]]["Default"] == 0, name


@pytest.mark.parametrize("profile", ["local", "staging", "production"])
def test_every_profile_deploys_the_stage_of_its_name(profile: str) -> None:
    settings = tomllib.loads((REPOSITORY / "samconfig.toml").read_text())[profile]
    assert settings["global"]["parameters"]["stack_name"] == f"meterline-{profile}"
    overrides = settings["deploy"]["parameters"]["parameter_overrides"]
    assert f"Stage={profile}" in overrides
    assert ("StreamShards=one" in overrides) == (profile == "local")
    for override in overrides:
        assert override.partition("=")[0] in MAIN["Parameters"]


@pytest.mark.parametrize("profile", ["staging", "production"])
def test_every_secret_that_a_person_makes_is_the_stages_own(profile: str) -> None:
    settings = tomllib.loads((REPOSITORY / "samconfig.toml").read_text())[profile]
    named = dict(
        override.split("=", 1)
        for override in settings["deploy"]["parameters"]["parameter_overrides"]
    )
    secrets = [name for name in MAIN["Parameters"] if name.endswith("SecretName")]
    assert len(secrets) >= 2
    for name in secrets:
        assert named.get(name, "").startswith(f"meterline/{profile}/"), name


def test_the_dashboard_shows_only_facts_that_functions_tell() -> None:
    [(_file, _name, dashboard)] = find_resources("AWS::CloudWatch::Dashboard")
    body = json.loads(str(dashboard["Properties"]["DashboardBody"]["Fn::Sub"]))
    shown = {
        (row[3], row[1])
        for widget in body["widgets"]
        for row in widget["properties"]["metrics"]
        if row[0] == OUR_METRICS
    }
    assert len(shown) >= 20
    for service, metric in shown:
        handler = (REPOSITORY / "functions" / service / "handler.py").read_text()
        assert f'"{metric}"' in handler, f"{service} never tells {metric}"


def test_stages_that_share_an_account_do_not_share_their_facts() -> None:
    variables = MAIN["Globals"]["Function"]["Environment"]["Variables"]
    assert variables["POWERTOOLS_METRICS_NAMESPACE"] == {"Fn::Sub": OUR_METRICS}


def test_every_alarm_on_a_business_fact_watches_one_that_its_function_tells() -> None:
    checked = 0
    for alarm, namespace, metric, dimensions in list_watched():
        if namespace != OUR_METRICS:
            continue
        [(name, service)] = dimensions
        handler = (REPOSITORY / "functions" / service / "handler.py").read_text()
        assert name == "service", alarm
        assert f'"{metric}"' in handler, alarm
        checked += 1
    assert checked >= 10


def test_every_alarm_on_aws_watches_a_metric_that_aws_has() -> None:
    # Names and dimensions as CloudWatch's documentation of each service has them.
    on_aws = {
        "AWS/SQS": (
            {"ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"},
            ["QueueName"],
        ),
        "AWS/Lambda": ({"Errors", "IteratorAge"}, ["FunctionName"]),
        "AWS/ApiGateway": ({"5xx"}, ["ApiId"]),
    }
    for alarm, namespace, metric, dimensions in list_watched():
        if namespace != OUR_METRICS:
            metrics, names = on_aws[namespace]
            assert metric in metrics, alarm
            assert [name for name, _value in dimensions] == names, alarm


def test_an_age_that_sqs_tells_is_told_by_the_function_too() -> None:
    # SQS leaves out what was received again and again (developer guide, available metrics).
    watched = {alarm: metric for alarm, _namespace, metric, _dimensions in list_watched()}
    ages = [name for name, metric in watched.items() if metric == "ApproximateAgeOfOldestMessage"]
    assert ages
    for name in ages:
        assert watched[name.replace("Alarm", "ByRetriesAlarm")] == "OldestWait", name


@pytest.mark.parametrize(
    ("what", "metric"),
    [
        ("emission lag: the stream", "IteratorAge"),
        ("the oldest message", "ApproximateAgeOfOldestMessage"),
        ("dead letters", "ApproximateNumberOfMessagesVisible"),
        ("divergence", "MetersDivergent"),
        ("unknown sends", "EventsUnknown"),
        ("breaker trips", "CustomersFrozen"),
        ("webhooks refused", "WebhooksRefused"),
        ("webhooks that never came", "WebhooksMissed"),
    ],
)
def test_an_alarm_rings_for(what: str, metric: str) -> None:
    assert metric in {watched for _alarm, _namespace, watched, _dimensions in list_watched()}, what
