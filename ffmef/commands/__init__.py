"""One module a subcommand: a docstring (its help), ``add_arguments(parser)`` and ``run(args)``.

The modules are imported to build the parser, so each imports torch and the rest of the package inside ``run``.
"""
