"""The subcommands of `gmsa`, those of `gmsa train` aside."""
