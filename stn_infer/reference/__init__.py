"""What everything is held to: a model or a file in float64, with a record of every sampling grid."""
