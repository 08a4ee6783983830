"""What watches over a run: steps that went wrong, signals, silence, unequal copies, memory."""
