"""Float32 graphs in the precision and form that suit a device."""
