package fake

import (
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// vol is a volume.
type vol struct {
	name, path string
	driver     string
	options    obj
	labels     obj
	created    string
}

func (v *vol) show() obj {
	return obj{"Name": v.name, "Driver": v.driver, "Mountpoint": v.path, "Options": v.options, "Labels": v.labels, "Scope": "local", "CreatedAt": v.created}
}

// dir is where the data is: a bound directory is not mounted, only looked up.
func (v *vol) dir() string {
	if d := str(v.options, "device"); str(v.options, "o") == "bind" && d != "" {
		return d
	}
	return v.path
}

func (e *Engine) routeVolumes(w http.ResponseWriter, r *http.Request, p []string) {
	switch {
	case len(p) == 0:
		e.locked(w, func() (any, error) {
			list := []obj{}
			for _, v := range e.volumes {
				list = append(list, v.show())
			}
			return obj{"Volumes": list, "Warnings": nil}, nil
		})
	case p[0] == "create" && r.Method == "POST":
		req, err := body(r)
		if err != nil {
			reply(w, err)
			return
		}
		e.locked(w, func() (any, error) {
			v, err := e.volume(str(req, "Name"), req)
			if err != nil {
				return nil, err
			}
			return v.show(), nil
		})
	case r.Method == "GET":
		e.locked(w, func() (any, error) {
			if v := e.volumes[p[0]]; v != nil {
				return v.show(), nil
			}
			return nil, refused(http.StatusNotFound, "get %s: no such volume", p[0])
		})
	case r.Method == "DELETE":
		e.locked(w, func() (any, error) { return nil, e.removeVolume(p[0]) })
	}
}

// volume gives the volume of a name, made anew if it is not there.
func (e *Engine) volume(name string, req obj) (*vol, error) {
	if v := e.volumes[name]; v != nil {
		return v, nil
	}
	v := &vol{name: name, driver: str(req, "Driver"), options: sub(req, "DriverOpts"), labels: sub(req, "Labels"), created: stamp(time.Now())}
	if v.driver == "" {
		v.driver = "local"
	}
	v.path = filepath.Join(e.root, "volumes", name, "_data")
	if err := os.MkdirAll(v.path, 0o755); err != nil {
		return nil, err
	}
	e.volumes[name] = v
	return v, nil
}

func (e *Engine) removeVolume(name string) error {
	v := e.volumes[name]
	if v == nil {
		return refused(http.StatusNotFound, "get %s: no such volume", name)
	}
	for _, c := range e.containers {
		for _, m := range c.mounts {
			if m.volume == name {
				return refused(http.StatusConflict, "remove %s: volume is in use - [%s]", name, c.id)
			}
		}
	}
	delete(e.volumes, name)
	return os.RemoveAll(filepath.Dir(v.path))
}
