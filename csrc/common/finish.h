// Limits of the finest level of PyramidFFMEF (into_range and smooth_chroma in ffmef/models/pyramid.py), in greys on the
// scale 0..255: shared by host and device code.
#pragma once

namespace ffmef {

// Greys beyond which luminance is compressed, and the most that channels may reach, unless the exposures go further.
constexpr float kKnee = 218.0f, kToe = 24.0f, kWhite = 252.0f;
constexpr float kSlack = 1e-3f;      // channels may exceed the limit by this, so that rounding alone changes nothing
constexpr float kFar = 1e6f;         // largest distance beyond the knee or toe, for luminance that is not finite
constexpr float kHalfApart = 8.0f;   // the difference between exposures' greys that smooths chroma by half,
constexpr float kHalfStep = 4.0f;    // and the step between two pixels' chroma that does so
constexpr float kSwing = 1.164383f;  // grey is kSwing times luminance above black
constexpr float kLeastValidity = 1e-6f;  // lower bound of validity

}  // namespace ffmef
