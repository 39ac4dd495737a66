// Nothing of this header is named by libtorch's ProcessGroupGloo.hpp. See context.h.
#pragma once
