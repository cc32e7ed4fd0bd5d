package freeze

import "fmt"

// Pids lists the processes in the cgroups of the set, nested cgroups included.
// Frozen or not; while frozen the list does not change. Containers that are
// frozen through the engine give their init process only.
func (s *Set) Pids() ([]int, error) {
	var all []int
	for _, m := range s.members {
		if m.cgroup == nil {
			all = append(all, m.container.Pid)
			continue
		}
		pids, err := pidsBelow(m.cgroup.cgroup.Dir)
		if err != nil {
			return nil, fmt.Errorf("processes of container %s: %w", m.container, err)
		}
		all = append(all, pids...)
	}
	return all, nil
}
