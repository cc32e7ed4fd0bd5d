// Package catalog is the stored form of a file tree's list of entries
// (docs/format.md, Catalog): bytes in, bytes out.
//
// An Entry is one name of a tree with its metadata and the references to its
// content. A Builder takes entries in walk order, cuts them into pages that
// mostly stay the same when few entries change, and hands pages and page table
// to a Sink. A Reader gives them back in order, finds single ones, and resumes
// anywhere; Merge and Diff run over two catalogs at once.
//
// The decoder is strict and canonical: what it accepts is exactly what the
// encoder would write for the same entries, every length is checked against
// its bound before memory is taken, and no path can name anything outside its
// tree (invariant 10). What fails these checks is dr.ErrTampered.
//
// The package reads and writes no files, fetches nothing by itself and knows
// nothing of the disk; package tree does.
package catalog
