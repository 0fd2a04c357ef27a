//! otel.
