// Stands where the CUDA toolkit's header of this name would: emulated builds put this folder first.
#pragma once

#include "emu.hpp"
#include "runtime.hpp"
