// Package idxcache keeps the index of one pack manifest in a local file, ready
// to be searched without reading it into memory: sorted, mapped, with a small
// filter in front. Lookups over some dozens of such files stay fast, and a
// repository of millions of units costs page cache instead of heap.
//
// Main types: [Builder] makes a file (it is a pack.Visitor), [Index] searches
// one. Files are disposable: they hold nothing that the registry does not, and
// one that is missing, truncated or damaged is made anew. Damage is noticed:
// the header carries a MAC over the checksums of all blocks, and a block is
// checked when it is first touched.
//
// The package does no network I/O, and does not check an index's signature:
// pack.ReadIndex does, before Builder.Finish is called.
package idxcache
