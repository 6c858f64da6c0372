"""Which jobs this engine pulls, holds and lets go of: by the word of their owners. No NATS, no clock."""
