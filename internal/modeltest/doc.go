// Package modeltest tries everything below an engine together: random work on
// real file trees, captured by package tree into a repository (package repo) by
// several hosts, restored, forgotten and collected in any order, with store
// calls that fail and processes that are killed. What must come back is kept in
// memory, as a walker sees it that shares nothing with the code under test
// (lab/treecmp).
//
// It holds tests only. It knows no engines, freezes or registries: packages
// capture, recover and e2e try those.
package modeltest
