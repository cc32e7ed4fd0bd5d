package override

import (
	"encoding/json"
	"strconv"

	"lifeboat/internal/quantity"
)

// limits writes the engine's resource fields. Those that depend on a changed
// one move along, because the engine refuses contradictions: a swap limit or a
// reservation that no longer fits the memory limit, a quota beside NanoCpus.
func (a *applier) limits() {
	for _, name := range sortedKeys(a.set.Limits) {
		l := a.set.Limits[name]
		for _, c := range a.find("limits."+name, name) {
			if l.Memory != nil {
				a.memory(c, *l.Memory)
			}
			if l.NanoCPUs != nil {
				a.cpus(c, *l.NanoCPUs)
			}
			if l.PIDs != nil {
				a.setNumber(c, "PidsLimit", "limit pids", *l.PIDs, plainLimit)
			}
			if l.CPUSet != nil {
				a.in(c, "limit cpuset", orNone(c.hostConfig.text("CpusetCpus")), orNone(*l.CPUSet))
				c.hostConfig["CpusetCpus"] = *l.CPUSet
			}
		}
	}
}

func (a *applier) memory(c *container, limit int64) {
	h := c.hostConfig
	old, swap, reserved := h.number("Memory"), h.number("MemorySwap"), h.number("MemoryReservation")
	a.setNumber(c, "Memory", "limit memory", limit, sizeLimit)
	switch {
	case limit == 0 && swap > 0:
		// A swap limit needs a memory limit.
		a.setNumber(c, "MemorySwap", "limit memory and swap", 0, sizeLimit)
	case limit > 0 && swap > 0:
		// MemorySwap counts both: the room for swap alone stays the same.
		a.setNumber(c, "MemorySwap", "limit memory and swap", limit+max(swap-old, 0), sizeLimit)
	}
	if limit > 0 && reserved > limit {
		a.setNumber(c, "MemoryReservation", "memory reservation", limit, sizeLimit)
	}
}

func (a *applier) cpus(c *container, nano int64) {
	h := c.hostConfig
	old := h.number("NanoCpus")
	if quota := h.number("CpuQuota"); quota > 0 {
		period := h.number("CpuPeriod")
		if period == 0 {
			period = 100_000 // the kernel's default, in microseconds
		}
		old = quota * 1_000_000_000 / period
		h["CpuQuota"], h["CpuPeriod"] = json.Number("0"), json.Number("0")
		c.changed = true
	}
	h["NanoCpus"] = json.Number(strconv.FormatInt(nano, 10))
	a.in(c, "limit cpus", cpuLimit(old), cpuLimit(nano))
}

func (a *applier) setNumber(c *container, key, field string, n int64, form func(int64) string) {
	a.in(c, field, form(c.hostConfig.number(key)), form(n))
	c.hostConfig[key] = json.Number(strconv.FormatInt(n, 10))
}

// The engine writes "no limit" as 0 or -1.

func sizeLimit(n int64) string {
	if n <= 0 {
		return "none"
	}
	return quantity.Size(n)
}

func plainLimit(n int64) string {
	if n <= 0 {
		return "none"
	}
	return strconv.FormatInt(n, 10)
}

func cpuLimit(nano int64) string {
	if nano <= 0 {
		return "none"
	}
	return strconv.FormatFloat(float64(nano)/1e9, 'f', -1, 64)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
