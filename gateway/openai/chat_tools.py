"""The tools of OpenAI's chat request, also in the form before them (`functions`), and the fields of the command that they become."""

from typing import Any, Literal

from pydantic import Field

from contracts.text import Tool
from gateway.openai.strict_body import StrictBody, check_fields_of_type
from gateway.problems import HttpProblem
from gateway.strict_model import strict_model

MAX_TOOLS = 128
_FunctionFields: Any = strict_model(Tool)


class ToolDefinition(StrictBody):
    """A function that the model may call; `custom` tools are not supported."""

    type: Literal["function"]
    function: _FunctionFields


class FunctionName(StrictBody):
    name: str = Field(max_length=128)


class NamedTool(StrictBody):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(StrictBody):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class ToolSelection(StrictBody):
    """One function that must be called, or some that may be."""

    type: Literal["function", "allowed_tools"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


SELECTION_FIELDS = {"function": frozenset({"function"}), "allowed_tools": frozenset({"allowed_tools"})}
"""Which types have a field."""


class ToolRequest(StrictBody):
    """The fields about tools."""

    tools: list[ToolDefinition] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolSelection = "auto"
    parallel_tool_calls: bool = True
    functions: list[_FunctionFields] = Field(default_factory=list, max_length=MAX_TOOLS, description="Deprecated: `tools`.")
    function_call: Literal["none", "auto"] | FunctionName = Field("auto", description="Deprecated: `tool_choice`.")

    @property
    def in_old_form(self) -> bool:
        """Whether the calls of the answer are `function_call`, as before the tools."""
        return bool(self.functions)

    @property
    def definitions(self) -> list[dict[str, Any]]:
        functions = self.functions or [tool.function for tool in self.tools]
        return [function.model_dump(mode="json", exclude_none=True) for function in functions]

    def tool_fields(self) -> dict[str, Any]:
        """The fields of the command; none without tools. Raises HttpProblem(400) for a choice among tools that are not there."""
        self._check_forms()
        field, tools = ("functions" if self.in_old_form else "tools"), self.definitions
        names = [tool["name"] for tool in tools]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise HttpProblem(400, "invalid-request", f"two of them have the name {repeated}", param=field)
        choice = self._choice_fields(names)
        allowed = choice.pop("allowed", names)
        if not tools:
            return {}
        several = self.parallel_tool_calls and not self.in_old_form
        return {"tools": [tool for tool in tools if tool["name"] in allowed], "parallel_tool_calls": several} | choice

    def _check_forms(self) -> None:
        """Raises HttpProblem(400) for fields of both forms: one of two choices would have no effect. Defaults ask for nothing."""
        given = [name for name in ("functions", "function_call", "tools", "tool_choice") if getattr(self, name) not in ([], "auto")]
        old = [name for name in given if name.startswith("function")]
        new = [name for name in given if name.startswith("tool")]
        if old and new:
            detail = f"{old[0]} and {new[0]} belong to two forms of one request: send tools and tool_choice"
            raise HttpProblem(400, "invalid-request", detail, param=old[0])

    def _choice_fields(self, names: list[str]) -> dict[str, Any]:
        """`tool_choice` and `tool_name` of the command; `allowed`: the tools that are offered, where they are not all."""
        old = self.in_old_form or self.function_call != "auto"
        choice, field = (self.function_call, "function_call") if old else (self.tool_choice, "tool_choice")
        if isinstance(choice, ToolSelection):
            check_fields_of_type(choice, SELECTION_FIELDS, field)
        match choice:
            case FunctionName(name=name) | ToolSelection(type="function", function=FunctionName(name=name)):
                check_names([name], names, field)
                return {"tool_choice": "required", "tool_name": name}
            case ToolSelection(type="allowed_tools", allowed_tools=AllowedTools() as allowed):
                selected = [tool.function.name for tool in allowed.tools]
                check_names(selected, names, field)
                return {"tool_choice": allowed.mode, "allowed": selected}
            case ToolSelection(type=kind):
                raise HttpProblem(400, "invalid-request", f"the field {kind} is missing", param=f"{field}.{kind}")
            case "required" if not names:
                raise HttpProblem(400, "invalid-request", "a call is required, and there are no tools", param=field)
        return {"tool_choice": choice}


def check_names(selected: list[str], names: list[str], field: str) -> None:
    """Raises HttpProblem(400) for a name that no tool has."""
    if unknown := [name for name in selected if name not in names]:
        raise HttpProblem(400, "invalid-request", f"no tool has the name {unknown[0]}", param=field)
