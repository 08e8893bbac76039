"""One module per subcommand: a docstring (its help), ``add_arguments(parser)`` and ``run(args)``.

The modules are imported to build the parser, so each imports torch and the rest of the package inside ``run``.
"""

MOST_THREADS = 4096  # far more than processors have; far fewer than would exhaust the system
