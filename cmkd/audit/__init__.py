"""The audit of a model of activation, valence and dominance: what `cmkd audit` does. docs/audit.md is for its users."""
