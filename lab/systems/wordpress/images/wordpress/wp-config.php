<?php
define('DB_NAME', getenv('WORDPRESS_DB_NAME'));
define('DB_USER', getenv('WORDPRESS_DB_USER'));
define('DB_PASSWORD', getenv('WORDPRESS_DB_PASSWORD'));
define('DB_HOST', getenv('WORDPRESS_DB_HOST'));
define('DB_CHARSET', 'utf8mb4');
define('DB_COLLATE', '');
$table_prefix = 'wp_';
// The address by which a visitor came: it is another one at another site.
$host = $_SERVER['HTTP_HOST'] ?? 'localhost';
define('WP_HOME', 'http://' . $host);
define('WP_SITEURL', 'http://' . $host);
define('WP_CONTENT_DIR', '/var/lib/wordpress/wp-content');
define('WP_CONTENT_URL', 'http://' . $host . '/wp-content');
// There is no way out: nothing may wait for one.
define('WP_HTTP_BLOCK_EXTERNAL', true);
define('DISABLE_WP_CRON', true);
define('AUTOMATIC_UPDATER_DISABLED', true);
// The part that differs from installation to installation is mounted by the Compose project.
if (is_readable('/etc/wordpress/site/site.php')) {
    require '/etc/wordpress/site/site.php';
}
foreach (['AUTH_KEY', 'SECURE_AUTH_KEY', 'LOGGED_IN_KEY', 'NONCE_KEY', 'AUTH_SALT', 'SECURE_AUTH_SALT', 'LOGGED_IN_SALT', 'NONCE_SALT'] as $name) {
    if (!defined($name)) {
        define($name, hash('sha256', $name . getenv('WORDPRESS_SECRET')));
    }
}
if (!defined('ABSPATH')) {
    define('ABSPATH', '/usr/share/wordpress/');
}
require_once ABSPATH . 'wp-settings.php';
