package site

import (
	"fmt"
	"sort"

	"lifeboat/internal/dr"
)

const marksFile = "marked.json"

// Mark records, durably and before the first write into it, that the tree with
// the given key is being rewritten and must not be served (docs/adr/0005). Its
// containers are to be stopped and kept from restarting by then.
func (s *State) Mark(sys dr.System, keys ...string) error {
	m, err := s.marks(sys)
	if err != nil {
		return err
	}
	for _, k := range keys {
		m[k] = true
	}
	return s.saveMarks(sys, m)
}

// Unmark takes the marks back, once what was written is on disk.
func (s *State) Unmark(sys dr.System, keys ...string) error {
	m, err := s.marks(sys)
	if err != nil {
		return err
	}
	for _, k := range keys {
		delete(m, k)
	}
	return s.saveMarks(sys, m)
}

// Marked lists the trees of a system that are marked, sorted.
func (s *State) Marked(sys dr.System) ([]string, error) {
	m, err := s.marks(sys)
	if err != nil {
		return nil, err
	}
	keys := make([]string, 0, len(m))
	for k, marked := range m {
		if marked {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	return keys, nil
}

func (s *State) marks(sys dr.System) (map[string]bool, error) {
	m := map[string]bool{}
	if _, err := s.load(sys, marksFile, &m); err != nil {
		return nil, fmt.Errorf("which trees of system %s are half written cannot be told: %w; nothing of it is started or overwritten: "+
			"move the file away only if no failover or failback was cut off here", sys, err)
	}
	if m == nil { // "null"
		m = map[string]bool{}
	}
	return m, nil
}

func (s *State) saveMarks(sys dr.System, m map[string]bool) error {
	if len(m) == 0 {
		return s.remove(sys, marksFile)
	}
	return s.save(sys, marksFile, m)
}
