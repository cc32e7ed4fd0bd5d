<?php
define('WP_POST_REVISIONS', 3);
define('WP_MEMORY_LIMIT', '128M');
