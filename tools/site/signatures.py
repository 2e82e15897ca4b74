"""Lets the reference show the arguments that a function takes over from another; an extension of griffe."""

from griffe import Extension, Parameters


class WithArgumentsOf(Extension):
    """In place of the `**options` of a function decorated `with_arguments_of` another, the arguments of that one."""

    def on_module(self, *, mod, **_):
        for function in (each for each in mod.functions.values() if not each.is_alias):
            for decorator in function.decorators:
                name, _, argument = str(decorator.value).rstrip(")").partition("(")
                if name == "with_arguments_of" and argument in mod.functions:
                    own = [parameter for parameter in function.parameters if parameter.name != "options"]
                    names = {parameter.name for parameter in own}
                    others = [each for each in mod.functions[argument].parameters if each.name not in names]
                    function.parameters = Parameters(*own, *others)
