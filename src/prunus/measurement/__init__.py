"""What costs a clock to know: latency, memory, energy."""
