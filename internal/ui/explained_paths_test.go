package ui

import "testing"

// Paths are shown as they are on the host, not as this process reaches them.
func TestPathsOfTheHostAreShown(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"open /proc/22409/root/var/tmp/x: no space":       "open /var/tmp/x: no space",
		"/proc/1/root/a and /proc/1/root/b":               "/a and /b",
		"stat /proc/1/root: permission denied":            "stat /: permission denied",
		"read /proc/22409/mountinfo: permission denied":   "read /proc/22409/mountinfo: permission denied",
		"/proc/self/root/x and /proc/1/rootless/x remain": "/proc/self/root/x and /proc/1/rootless/x remain",
	} {
		if got := shown(in); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
