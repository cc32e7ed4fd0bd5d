package site

import (
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
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys, nil
}

func (s *State) marks(sys dr.System) (map[string]bool, error) {
	m := map[string]bool{}
	_, err := s.load(sys, marksFile, &m)
	return m, err
}

func (s *State) saveMarks(sys dr.System, m map[string]bool) error {
	if len(m) == 0 {
		return s.remove(sys, marksFile)
	}
	return s.save(sys, marksFile, m)
}
