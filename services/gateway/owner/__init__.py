"""What makes a gateway the owner of requests: the ledger, and all that it decides by. No I/O, no clock."""
