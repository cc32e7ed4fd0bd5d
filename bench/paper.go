package main

import (
	"context"
	"errors"
)

// paper measures the figures of the paper.
func (s *stage) paper(context.Context, options, func(map[string][]byte) error) error {
	return errors.New("not there")
}
