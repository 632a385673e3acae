// Compiled with this set's own flags (setup.py); a file of its own, so that builds side by side do not share objects.
#include "../binary.cpp"
#include "../cpu.cpp"
#include "../fp32.cpp"
#include "../int8.cpp"
#include "../peak.cpp"
