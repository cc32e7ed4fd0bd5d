package idxcache

// NewBuilderBatch is NewBuilder with a smaller batch for sorting, so that a
// test of several passes needs no million units.
var NewBuilderBatch = newBuilder
