// Command counter is what runs in the test's containers: it counts into a file.
package main

import (
	"os"
	"strconv"
	"time"
)

func main() {
	for i := 1; ; i++ {
		if err := os.WriteFile("/out/count.new", []byte(strconv.Itoa(i)), 0o644); err != nil {
			panic(err)
		}
		if err := os.Rename("/out/count.new", "/out/count"); err != nil {
			panic(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
